"""The doctor's report: a table in Markdown, and one HTML file with pictures that needs no network."""

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime

from pipelines.checks.content import Finding
from pipelines.doctor.diagnose import Diagnosis
from pipelines.names import CHECKS
from storage_schemas.images import data_url
from storage_schemas.location import locate
from storage_schemas.markdown import plain, table

MAX_SHOWN = 50
"""Findings of one reason that the HTML page lists, and of all that the Markdown does; the JSON has all."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """The findings of one reason."""

    reason: str
    meaning: str
    fatal: bool
    count: int
    shown: tuple[Finding, ...]


def groups(diagnosis: Diagnosis) -> list[Group]:
    """Findings by reason: first what can't be used, then the doubts; the most frequent first."""
    by_reason: dict[tuple[bool, str], list[Finding]] = {}
    for finding in diagnosis.findings:
        by_reason.setdefault((finding.fatal, finding.reason), []).append(finding)
    ordered = sorted(by_reason.items(), key=lambda item: (not item[0][0], -len(item[1]), item[0][1]))
    return [
        Group(
            reason=reason,
            meaning=CHECKS.get(reason, ""),
            fatal=fatal,
            count=len(findings),
            shown=tuple(findings[:MAX_SHOWN]),
        )
        for (fatal, reason), findings in ordered
    ]


def verdict(diagnosis: Diagnosis) -> str:
    """The result in one line."""
    fatal = Counter(finding.fatal for finding in diagnosis.findings)
    looked = f"{diagnosis.episodes:,} episodes of {diagnosis.steps:,} steps can be used"
    if not diagnosis.findings:
        return f"{looked}; nothing is wrong"
    return f"{looked}; {fatal[True]} findings of damage, {fatal[False]} of doubt"


def write_page(diagnosis: Diagnosis, path: str) -> str:
    """Write the HTML page to a path or URI; returns the path as given."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipelines.doctor", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_url"] = data_url
    page = environment.get_template("page.html").render(
        diagnosis=diagnosis,
        groups=groups(diagnosis),
        verdict=verdict(diagnosis),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    locate(path).write_bytes(page.encode())
    return path


def markdown(diagnosis: Diagnosis) -> str:
    """The findings as a Markdown table."""
    parts = [f"# Doctor: {plain(diagnosis.target)}\n", f"{verdict(diagnosis)}\n"]
    ordered = [finding for group in groups(diagnosis) for finding in group.shown][:MAX_SHOWN]
    rows = [(f"{'✗' if f.fatal else '?'} {f.reason}", plain(f.source_uri), plain(f.detail)) for f in ordered]
    if rows:
        parts.append(table(("finding", "place", "what"), rows))
    if (more := len(diagnosis.findings) - len(rows)) > 0:
        parts.append(f"{more:,} more: `uwm doctor --json` lists all.\n")
    return "\n".join(parts)
