#!/usr/bin/env python3
"""Draws the dashboards beside this file as SVG, from what a Prometheus knows: what Grafana would show, without Grafana.

    deploy/grafana/draw.py --prometheus http://127.0.0.1:9090 --minutes 15 --out pictures

A panel without data says so; with --strict that is an error. Needs Python 3.9 and nothing else.
"""

import argparse
import json
import math
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import plot

FOLDER = Path(__file__).resolve().parent / "dashboards"
# Points of a line: as many as can be told apart on a panel.
POINTS_MAX = 120


@dataclass
class Window:
    """The time that is drawn, as Grafana's variables know it; seconds."""

    start: float
    end: float
    step: float
    scrape: float

    def substitute(self, expression):
        rate = max(self.step + self.scrape, 4 * self.scrape)
        values = {
            "__rate_interval": f"{math.ceil(rate)}s",
            "__range": f"{math.ceil(self.end - self.start)}s",
        }
        # The other variables are lists of which all is chosen.
        return re.sub(r"\$(\w+)", lambda found: values.get(found[1], ".*"), expression)


class Prometheus:
    def __init__(self, url):
        self.url = url.rstrip("/")

    def ask(self, path, **arguments):
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(arguments)}"
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                return json.load(answer)["data"]["result"]
        except urllib.error.HTTPError as error:
            sys.exit(f"draw: {arguments.get('query')}: {error.read().decode(errors='replace')}")
        except OSError as error:
            sys.exit(f"draw: {self.url} does not answer: {error}")

    def read(self, target, window):
        """The series of a target of a panel, without values that are no numbers."""
        query = window.substitute(target["expr"])
        if target.get("instant"):
            found = self.ask("query", query=query, time=window.end)
            rows = [(series["metric"], [series["value"]]) for series in found]
        else:
            found = self.ask("query_range", query=query, start=window.start, end=window.end, step=window.step)
            rows = [(series["metric"], series["values"]) for series in found]
        for labels, values in rows:
            points = [(float(at), float(value)) for at, value in values]
            points = [(at, value) for at, value in points if math.isfinite(value)]
            if points:
                yield plot.Series(name(target, labels), labels, points, target["refId"])


def name(target, labels):
    """What the legend calls a series."""
    template = target.get("legendFormat")
    if template:
        return re.sub(r"{{\s*(\w+)\s*}}", lambda found: labels.get(found[1], ""), template)
    return ", ".join(labels.values()) or "value"


def draw(dashboard, prometheus, window):
    """The picture, and the titles of the panels that have no data."""
    bodies, empty = [], []
    panels = dashboard["panels"]
    for panel in panels:
        if panel["type"] == "row":
            bodies.append(plot.heading(panel))
            continue
        series = [series for target in panel["targets"] for series in prometheus.read(target, window)]
        if not series:
            empty.append(panel["title"])
        bodies.append(plot.panel(panel, series, window))
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    minutes = (window.end - window.start) / 60
    subtitle = f"{dashboard['description']}  {minutes:.0f} minutes of a real fleet, drawn by deploy/grafana/draw.py."
    return plot.page(escape(dashboard["title"]), escape(subtitle), rows, bodies), empty


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", metavar="URL")
    parser.add_argument("--minutes", type=float, default=15, help="how much of the past is drawn")
    parser.add_argument("--scrape-seconds", type=float, default=5, help="how often Prometheus scrapes")
    parser.add_argument("--out", type=Path, default=Path("."), metavar="FOLDER")
    parser.add_argument("--strict", action="store_true", help="fail when a panel has no data")
    return parser.parse_args()


def main():
    given = arguments()
    prometheus = Prometheus(given.prometheus)
    end = time.time()
    length = given.minutes * 60
    step = max(length / POINTS_MAX, given.scrape_seconds)
    window = Window(end - length, end, step, given.scrape_seconds)
    given.out.mkdir(parents=True, exist_ok=True)
    missing = []
    for path in sorted(FOLDER.glob("*.json")):
        picture, empty = draw(json.loads(path.read_text()), prometheus, window)
        (given.out / path.with_suffix(".svg").name).write_text(picture)
        missing += [f"{path.stem}: {title}" for title in empty]
    for title in missing:
        print(f"draw: no data for {title}", file=sys.stderr)
    sys.exit(1 if missing and given.strict else 0)


if __name__ == "__main__":
    main()
