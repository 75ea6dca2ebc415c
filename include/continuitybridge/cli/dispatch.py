"""`bridge dispatch`: the resident process that starts runs for accepted messages."""

from __future__ import annotations

import click


@click.command()
def dispatch() -> None:
    """Start runs for accepted messages until stopped (SIGTERM). Several may run at once."""
    import logging
    import os

    from continuitybridge.runtime.environment import process_environment
    from continuitybridge.settings import get_settings

    # Airflow reads its configuration while it is imported.
    os.environ.update(process_environment(get_settings()))
    from continuitybridge.airflow.dispatcher import run_dispatcher
    from continuitybridge.vault.rotation import check_master_key

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", force=True)
    check_master_key()
    run_dispatcher()
