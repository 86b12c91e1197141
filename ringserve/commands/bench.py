"""Stand-in."""
import click


@click.command()
def bench() -> None:
    """Later."""
