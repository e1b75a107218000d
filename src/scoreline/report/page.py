"""Pages of html that need nothing but themselves, from the templates of this room."""

from __future__ import annotations

from typing import Any

__all__ = ["rendered"]


def rendered(template: str, values: dict[str, Any]) -> str:
    """A page.

    Args:
        template: name of a file beside this one, which extends page.html.
        values: what it shows; text is escaped.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("scoreline", "report")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(values)
