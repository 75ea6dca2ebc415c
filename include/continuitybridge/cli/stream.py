"""`bridge stream`: stream workers as plain processes."""

from __future__ import annotations

import click


@click.command()
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes.")
@click.option("--life", "life_s", type=click.FloatRange(min=1), help="End after so many seconds.")
def stream(workers: int, life_s: float | None) -> None:
    """Take messages of flows in mode stream as they come, until stopped (SIGTERM).

    Any number may run, on any number of machines. By default stream workers run as tasks of Airflow and this is
    not needed: set BRIDGE_STREAM_WORKERS=0 where this is to do all of the work.
    """
    import logging

    from continuitybridge.stream import process
    from continuitybridge.vault.rotation import check_master_key

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", force=True)
    check_master_key()
    if workers == 1:
        process.serve(life_s=life_s)
    else:
        process.serve_several(workers, life_s)
