"""`bridge intake`: the server that takes webhooks, apart from Airflow's."""

from __future__ import annotations

import click

from continuitybridge.errors import ConfigurationError


@click.command("intake")
@click.option("--host", help="Address to bind; without it BRIDGE_HOST.")
@click.option("--port", type=click.IntRange(1, 65535), help="Port; without it BRIDGE_INTAKE_PORT.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes.")
def intake(host: str | None, port: int | None, workers: int) -> None:
    """Serve POST /bridge/hooks/{organization}/{environment}/{slug} until stopped."""
    from continuitybridge.api import intake_alone
    from continuitybridge.settings import get_settings
    from continuitybridge.vault.rotation import check_master_key
    from continuitybridge.webhooks import server

    settings = get_settings()
    check_master_key()
    host, port = host or settings.host, port or settings.intake_port
    click.echo(f"intake at http://{host}:{port}/bridge/hooks/", err=True)
    try:
        server.serve(intake_alone.FACTORY, host, port, workers)
    except OSError as error:
        raise ConfigurationError(
            f"cannot bind {host}:{port} ({error.strerror}); choose another with --port or BRIDGE_INTAKE_PORT",
            field="BRIDGE_INTAKE_PORT",
            value=port,
        ) from None
