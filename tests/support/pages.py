"""What an HTML page is made of, and that it needs no network and runs nothing."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Tags(HTMLParser):
    """What a page is made of; fails on a tag that is closed without being open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open, self.seen, self.words = [], [], []  # names; (name, attributes); of all text
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1:] == [tag]
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words).replace("\u00a0", " ")


def whole_page(page: str) -> Tags:
    """Without scripts, links, addresses; images lie in it."""
    tags = Tags(page)
    assert not {tag for tag, _ in tags.seen} & {"script", "link", "iframe", "object", "embed", "form", "base"}
    attributes = [(name, value or "") for _, attrs in tags.seen for name, value in attrs.items()]
    assert not [name for name, _ in attributes if name.startswith("on") or name == "href"]
    assert all(value.startswith("data:image/webp;base64,") for name, value in attributes if name == "src")
    assert not [word for word in ("url(", "http", "@import") if word in page]
    return tags
