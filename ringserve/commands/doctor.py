"""Stand-in."""
import click


@click.command()
def doctor() -> None:
    """Later."""
