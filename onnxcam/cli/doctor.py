"""`onnxcam doctor`: what is broken in this installation, and the command that mends it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from onnxcam.cli.errors import ExitCode

if TYPE_CHECKING:
    from onnxcam.diagnose.installation import Finding


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Find what is broken in this installation.

    What needs mending comes with the command that mends it. The exit code is 0 if nothing does, else 4.
    """
    from onnxcam.diagnose.installation import diagnose, healthy, report

    findings = diagnose()
    if as_json:
        click.echo(json.dumps(report(findings), indent=2))
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            click.echo(f"{_mark(finding)}  {finding.name:<{width}}  {finding.detail}")
            if finding.remedy:
                click.echo(f"{'':<{width + 8}}  $ {finding.remedy}")
        broken = sum(not finding.ok for finding in findings)
        click.echo(f"{broken} of {len(findings)} broken: run the commands after $." if broken else "Nothing is broken.")
    if not healthy(findings):
        ctx.exit(ExitCode.RUNTIME)


def _mark(finding: Finding) -> str:
    if not finding.ok:
        return click.style("broken", fg="red")
    return click.style("advice", fg="yellow") if finding.remedy else click.style("ok    ", fg="green")
