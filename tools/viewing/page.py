"""How does what is known of a plan become one page that needs nothing else?

Script and style are ours and lie in `assets`; the page allows these two, by their sha256, and nothing else: no other
script, no request, no frame. What came from a plan is a block of JSON in it, which no browser runs.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src '{script_hash}'; \
style-src '{style_hash}'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header id="top"></header>
<main id="main" role="tabpanel"><noscript>This page needs JavaScript, which is switched off.</noscript></main>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""


def page(data: Mapping[str, Any], title: str) -> str:
    """The whole page. `data` is what `assets/view.js` reads."""
    script, style = asset("view.js"), asset("view.css")
    # Inside a script element only `<` can end it, or open a comment.
    block = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return PAGE.format(
        script_hash=_hash(script),
        style_hash=_hash(style),
        title=html.escape(title),
        style=style,
        data=block,
        script=script,
    )


def asset(name: str) -> str:
    return (files("hjgc.tools.viewing") / "assets" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """As a content security policy names what it allows."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
