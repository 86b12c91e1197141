"""Stand-in."""
import click


@click.command()
def top() -> None:
    """Later."""
