"""`ringserve completion`: the script that makes a shell complete this command."""

from __future__ import annotations

from typing import Final

import click

_VARIABLE: Final = "_RINGSERVE_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script by which SHELL completes commands, flags, and names of a running server's models.

    \b
    ringserve completion bash > ~/.local/share/bash-completion/completions/ringserve
    ringserve completion zsh > "${fpath[1]}/_ringserve"
    ringserve completion fish > ~/.config/fish/completions/ringserve.fish
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None, "click knows these shells"
    root = context.find_root().command
    click.echo(found(root, {}, "ringserve", _VARIABLE).source())
