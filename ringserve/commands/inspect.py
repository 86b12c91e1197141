"""Stand-in."""
import click


@click.command()
def inspect() -> None:
    """Later."""
