"""A page from a template of this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def render_page(template: str, **context: Any) -> str:
    """Fill a template; what is not marked as safe is escaped, and what is missing is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**context)
