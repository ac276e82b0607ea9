"""Draws single panels of a dashboard as SVG: lines, bars, numbers, states and tables."""

import math
import time
from dataclasses import dataclass
from html import escape

COLUMN = 58  # pixels of one of Grafana's 24 columns
ROW = 32  # and of one of its rows
GAP = 8
TOP = 52
WIDTH = 24 * COLUMN
PALETTE = ["#3274d9", "#e0752d", "#56a64b", "#a352cc", "#c4162a", "#1f9e9e", "#b58900", "#6d4c41", "#7f8c8d", "#d6619a"]
NAMED = {
    "green": "#3a9a3f",
    "red": "#d02a3b",
    "orange": "#e8821e",
    "yellow": "#d9a400",
    "blue": "#3274d9",
    "purple": "#8f3bb8",
    "text": "#24292e",
}
GREY = "#8a8f98"
STYLE = """
text { font-family: system-ui, 'DejaVu Sans', sans-serif; font-size: 11px; fill: #24292e }
.title { font-weight: 600; font-size: 12px } .head { font-weight: 700; font-size: 20px } .soft { fill: #6a737d }
.big { font-size: 26px; font-weight: 600 } .card { fill: #fff; stroke: #d8dde3 } .grid { stroke: #eceff2 }
.line { fill: none; stroke-width: 1.4; stroke-linejoin: round } .limit { stroke-dasharray: 5 4 }
"""


@dataclass
class Series:
    """One line: its name, its labels, (time, value) ascending, and the target that it is of."""

    name: str
    labels: dict
    points: list
    target: str


@dataclass
class Box:
    """A part of the picture, in pixels."""

    x: float
    y: float
    w: float
    h: float

    def inner(self, left, top, right, bottom):
        return Box(self.x + left, self.y + top, self.w - left - right, self.h - top - bottom)


def page(title, subtitle, rows, bodies):
    height = TOP + rows * ROW + GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">'
        f'<style>{STYLE}</style><rect width="100%" height="100%" fill="#f4f5f7"/>'
        f'<text class="head" x="{GAP}" y="26">{title}</text><text class="soft" x="{GAP}" y="43">{subtitle}</text>\n'
        + "\n".join(bodies)
        + "\n</svg>\n"
    )


def text(x, y, words, kind="", anchor="start", colour=None):
    fill = f' style="fill:{colour}"' if colour else ""
    return f'<text class="{kind}" x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}"{fill}>{escape(str(words))}</text>'


def place(panel):
    at = panel["gridPos"]
    return Box(at["x"] * COLUMN, TOP + at["y"] * ROW, at["w"] * COLUMN, at["h"] * ROW).inner(GAP / 2, GAP / 2, GAP / 2, GAP / 2)


def heading(panel):
    box = place(panel)
    return text(box.x + 4, box.y + box.h - 6, panel["title"], "title")


def panel(panel, series, window):
    box = place(panel)
    frame = f'<rect class="card" x="{box.x}" y="{box.y}" width="{box.w}" height="{box.h}" rx="3"/>'
    body = box.inner(10, 26, 10, 8)
    draw = {"stat": stat, "timeseries": lines, "state-timeline": states, "table": table}[panel["type"]]
    drawn = draw(panel, series, body, window) if series else text(box.x + box.w / 2, box.y + box.h / 2, "no data", "soft", "middle")
    hint = escape(panel["description"])
    return f'<g data-panel="{panel["id"]}"><title>{hint}</title>{frame}{text(box.x + 10, box.y + 17, fit(panel["title"], box.w - 20), "title")}{drawn}</g>'


def length(words):
    """How wide words are, in pixels, or a little less."""
    return sum(8.2 if letter.isupper() or letter in "_m" else 6.5 for letter in words)


def fit(words, pixels):
    """As much of the words as there is room for."""
    if length(words) <= pixels:
        return words
    while words and length(words + "…") > pixels:
        words = words[:-1]
    return words + "…"


def colour(name):
    return NAMED.get(name, name)


def tell(value, unit, decimals=None):
    """A value with its unit, as short as a person wants it."""
    if unit == "percentunit":
        return f"{plain(value * 100, decimals)} %"
    if unit == "s":
        for factor, letters in [(1e-6, "µs"), (1e-3, "ms"), (1, "s"), (60, "min"), (3600, "h")]:
            if abs(value) < {1e-6: 1e-3, 1e-3: 1, 1: 120, 60: 7200, 3600: math.inf}[factor] and value != 0:
                return f"{plain(value / factor, decimals)} {letters}"
        return "0 s"
    if unit in ("bytes", "Bps"):
        size = 0 if value == 0 else min(int(math.log(max(abs(value), 1), 1024)), 4)
        letters = ["B", "KiB", "MiB", "GiB", "TiB"][size] + ("/s" if unit == "Bps" else "")
        return f"{plain(value / 1024**size, decimals)} {letters}"
    behind = {"reqps": " req/s", "none": "", "short": ""}.get(unit, " " + unit.removeprefix("suffix:").strip())
    if abs(value) >= 1e6:
        return f"{plain(value / 1e6, decimals)} M{behind}"
    if abs(value) >= 1e4:
        return f"{plain(value / 1e3, decimals)} k{behind}"
    return plain(value, decimals) + behind


def plain(value, decimals):
    if decimals is not None:
        return f"{value:.{decimals}f}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def level(defaults, value):
    """The colour of the threshold that a value has reached."""
    reached = "text"
    for step in defaults.get("thresholds", {}).get("steps", []):
        if step["value"] is None or value >= step["value"]:
            reached = step["color"]
    return colour(reached)


def mapped(defaults, value):
    """What a value is called, and its colour, where it is mapped."""
    for mapping in defaults.get("mappings", []):
        found = mapping["options"].get(f"{value:g}")
        if found:
            return found.get("text"), found.get("color")
    return None, None


def stat(panel, series, box, _window):
    defaults = panel["fieldConfig"]["defaults"]
    width = box.w / len(series)
    drawn = []
    for index, one in enumerate(series):
        value = one.points[-1][1]
        words = mapped(defaults, value)[0] or tell(value, defaults["unit"], defaults.get("decimals"))
        x = box.x + width * (index + 0.5)
        drawn.append(text(x, box.y + box.h / 2 + 8, words, "big", "middle", level(defaults, value)))
        if len(series) > 1:
            drawn.append(text(x, box.y + box.h - 4, one.name, "soft", "middle"))
    return "".join(drawn)


def nice(low, high, unit, count=4):
    """Round numbers from low to high; of bytes and times, in the unit that they are told in."""
    if unit in ("bytes", "Bps", "s"):
        scale = 1024 ** int(math.log(max(high, 1), 1024)) if unit != "s" else 3600 if high > 7200 else 60 if high > 120 else 1
        return [tick * scale for tick in nice(low / scale, high / scale, None, count)]
    span = (high - low) or abs(high) or 1
    raw = span / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.floor(low / step) * step
    ticks = [first]
    while ticks[-1] < high - step * 1e-6:
        ticks.append(ticks[-1] + step)
    return ticks


def stacked(series):
    """Each series on top of those before it: (lower, upper) by time."""
    height = {}
    for one in series:
        bands = []
        for at, value in one.points:
            below = height.get(at, 0)
            height[at] = below + value
            bands.append((at, below, below + value))
        yield bands


def shades(panel, series):
    """A colour for each series: that of an override, or the next of the palette."""
    fixed = {
        override["matcher"]["options"]: each["value"]["fixedColor"]
        for override in panel["fieldConfig"]["overrides"]
        for each in override["properties"]
        if each["id"] == "color"
    }
    return [colour(fixed.get(one.name, PALETTE[index % len(PALETTE)])) for index, one in enumerate(series)]


def pieces(points, step):
    """Runs of points without a gap between them."""
    run = []
    for point in points:
        if run and point[0] - run[-1][0] > 1.5 * step:
            yield run
            run = []
        run.append(point)
    if run:
        yield run


class Axes:
    """Where times and values lie in a panel, and what is written at the sides."""

    def __init__(self, box, window, ticks, unit):
        self.box = box.inner(58, 2, 4, 18)
        self.window, self.ticks, self.unit = window, ticks, unit

    def x(self, at):
        return self.box.x + self.box.w * (at - self.window.start) / (self.window.end - self.window.start)

    def y(self, value):
        low, high = self.ticks[0], self.ticks[-1]
        return self.box.y + self.box.h * (1 - (value - low) / (high - low))

    def draw(self):
        box, drawn = self.box, []
        for tick in self.ticks:
            y = self.y(tick)
            drawn.append(f'<path class="grid" d="M{box.x:.0f} {y:.1f}h{box.w:.0f}"/>')
            drawn.append(text(box.x - 5, y + 4, tell(tick, self.unit), "soft", "end"))
        return "".join(drawn) + clock(box, self.window)


def clock(box, window):
    """The time of day below a panel."""
    count = max(int(box.w / 110), 2)
    drawn = []
    for index in range(count):
        part = (index + 0.5) / count
        at = time.gmtime(window.start + part * (window.end - window.start))
        drawn.append(text(box.x + part * box.w, box.y + box.h + 14, time.strftime("%H:%M:%S", at), "soft", "middle"))
    return "".join(drawn)


def legend(names, box):
    """Names with their colours below a panel; gives what is drawn and how high that is."""
    drawn, x, row = [], 0, 0
    for index, (words, shade) in enumerate(names):
        words = fit(words, box.w - 16)
        width = 24 + length(words)
        if x and x + width > box.w:
            x, row = 0, row + 1
        if row == LEGEND_ROWS_MAX:
            drawn.append((row - 1, box.w - 24, None, f"+{len(names) - index}"))
            break
        drawn.append((row, x, shade, words))
        x += width
    rows = max(each[0] for each in drawn) + 1
    parts = []
    for row, x, shade, words in drawn:
        y = box.y + box.h - 14 * (rows - 1 - row)
        if shade:
            parts.append(f'<rect x="{box.x + x:.0f}" y="{y - 8:.0f}" width="10" height="4" fill="{shade}"/>')
        parts.append(text(box.x + x + 14, y - 3, words))
    return "".join(parts), 14 * rows


def ends(defaults, values):
    """The round numbers of an axis for these values."""
    low, high = min(values), max(values)
    low = defaults.get("min", low)
    high = max(defaults.get("max", high), high)
    return nice(low, high if high > low else low + 1, defaults["unit"])


def lines(panel, series, box, window):
    defaults = panel["fieldConfig"]["defaults"]
    custom = defaults.get("custom", {})
    is_stacked = "stacking" in custom
    bands = list(stacked(series)) if is_stacked else [[(at, 0, value) for at, value in one.points] for one in series]
    shade = shades(panel, series)
    names, height = legend(list(zip([one.name for one in series], shade)), box)
    limits = [step for step in defaults.get("thresholds", {}).get("steps", []) if step["value"] is not None and step["color"] != "transparent"]
    values = [upper for band in bands for _, _, upper in band]
    axes = Axes(box.inner(0, 0, 0, height), window, ends(defaults, values), defaults["unit"])
    drawn = [axes.draw(), names]
    for band, fill in zip(bands, shade):
        if custom.get("drawStyle") == "bars":
            drawn += bars(axes, band, fill, window.step)
        else:
            drawn += curves(axes, band, fill, window.step, custom, is_stacked)
    for limit in limits:
        if axes.ticks[0] <= limit["value"] <= axes.ticks[-1]:
            y = axes.y(limit["value"])
            drawn.append(f'<path class="limit" stroke="{colour(limit["color"])}" d="M{axes.box.x:.0f} {y:.1f}h{axes.box.w:.0f}"/>')
    return "".join(drawn)


def bars(axes, band, fill, step):
    width = max(abs(axes.x(step) - axes.x(0)) * 0.8, 1)
    for at, lower, upper in band:
        if upper > lower:
            top = axes.y(upper)
            yield f'<rect x="{axes.x(at) - width / 2:.1f}" y="{top:.1f}" width="{width:.1f}" height="{axes.y(lower) - top:.1f}" fill="{fill}"/>'


def curves(axes, band, fill, step, custom, is_filled):
    for run in pieces(band, step):
        upper = [(axes.x(at), axes.y(value)) for at, _, value in run]
        if custom.get("lineInterpolation") == "stepAfter":
            upper = [upper[0]] + [corner for before, after in zip(upper, upper[1:]) for corner in ((after[0], before[1]), after)]
        path = track(upper)
        if is_filled:
            lower = [(axes.x(at), axes.y(value)) for at, value, _ in reversed(run)]
            yield f'<path fill="{fill}" fill-opacity="{custom["fillOpacity"] / 100}" d="{path}L{track(lower)[1:]}Z"/>'
        if len(run) > 1 and custom.get("lineWidth", 1) > 0:
            yield f'<path class="line" stroke="{fill}" d="{path}"/>'
        if len(run) == 1 or custom.get("showPoints") == "always":
            for x, y in upper:
                yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{fill}"/>'


def track(corners):
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in corners)


def states(panel, series, box, window):
    """A row for each series, with a bar for each time in one state."""
    defaults = panel["fieldConfig"]["defaults"]
    names, height = legend([(each["text"], colour(each["color"])) for each in defaults["mappings"][0]["options"].values()], box)
    series = sorted(series, key=lambda one: one.name)
    box = box.inner(250, 0, 0, height + 20)
    row = min(box.h / len(series), 26)
    drawn = [names, clock(box, window)]
    for index, one in enumerate(series):
        y = box.y + index * row
        drawn.append(text(box.x - 8, y + row / 2 + 4, fit(one.name, 240), "", "end"))
        for start, end, value in spells(one.points, window.step):
            words, shade = mapped(defaults, value)
            left, right = (box.x + box.w * (at - window.start) / (window.end - window.start) for at in (start, min(end, window.end)))
            drawn.append(f'<rect x="{left:.1f}" y="{y + 1:.1f}" width="{right - left:.1f}" height="{row - 2:.1f}" fill="{colour(shade)}" fill-opacity="0.8"><title>{words}</title></rect>')
    return "".join(drawn)


def spells(points, step):
    """(start, end, value) of each time without a change or a gap."""
    for run in pieces(points, step):
        start = run[0]
        for before, after in zip(run, run[1:]):
            if after[1] != start[1]:
                yield start[0], after[0], start[1]
                start = after
        yield start[0], run[-1][0] + step, start[1]


def table(panel, series, box, _window):
    """The rows of all targets, joined by their labels."""
    names, hidden = {}, set()
    for each in panel.get("transformations", []):
        names.update(each["options"].get("renameByName", {}))
        hidden |= {key for key, is_hidden in each["options"].get("excludeByName", {}).items() if is_hidden}
    targets = [target["refId"] for target in panel["targets"]]
    rows, units = {}, column_units(panel)
    for one in series:
        value = "Value" if len(targets) == 1 else f"Value #{one.target}"
        rows.setdefault(tuple(one.labels.items()), {})[value] = one.points[-1][1]
    labels = [key for key in dict.fromkeys(key for one in series for key in one.labels) if key not in hidden]
    columns = labels + (["Value"] if len(targets) == 1 else [f"Value #{target}" for target in targets])
    width = box.w / (len(columns) + 1)
    # The first column holds the longest words.
    left = lambda index: box.x + (0 if index == 0 else width * (index + 1))
    drawn = [text(left(index), box.y + 12, names.get(key, key), "soft") for index, key in enumerate(columns)]
    for number, (key, values) in enumerate(list(rows.items())[: int(box.h / 18) - 1], 1):
        for index, column in enumerate(columns):
            called = names.get(column, column)
            value = dict(key).get(column) if column in labels else tell(values.get(column, 0), units(called))
            drawn.append(text(left(index), box.y + 12 + 18 * number, fit(value or "", width * (2 if index == 0 else 1) - 8)))
    return "".join(drawn)


def column_units(panel):
    own = {
        override["matcher"]["options"]: each["value"]
        for override in panel["fieldConfig"]["overrides"]
        for each in override["properties"]
        if each["id"] == "unit"
    }
    return lambda name: own.get(name, panel["fieldConfig"]["defaults"]["unit"])


# More names than these rows hold are only counted.
LEGEND_ROWS_MAX = 3
