"""JUnit XML: one test case per check.

The numbers stand in the failure text: GitLab and Jenkins show little else.
"""

from xml.etree import ElementTree as ET

from bench.escape import clean, clean_lines
from bench.render.document import Check, Document

_SUITE = "vnnify"


def render_junit(document: Document) -> str:
    """The checks as XML. An inconclusive one is a failure: a gate that cannot tell is shut."""
    checks = document.checks
    counts = {
        "tests": len(checks),
        "failures": sum(c.outcome in ("fail", "inconclusive") for c in checks),
        "errors": sum(c.outcome == "error" for c in checks),
        "skipped": sum(c.outcome == "skipped" for c in checks),
    }
    totals = {name: str(count) for name, count in counts.items()}
    root = ET.Element("testsuites", {"name": _SUITE, **totals})
    suite = ET.SubElement(root, "testsuite", {"name": clean(document.title) or _SUITE, **totals})
    for check in checks:
        _case(suite, check)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _case(suite: ET.Element, check: Check) -> None:
    attributes = {"classname": _SUITE, "name": clean(check.name) or "check", "time": "0"}
    case = ET.SubElement(suite, "testcase", attributes)
    message = clean(check.message)
    text = "\n".join(part for part in (message, clean_lines(check.details)) if part)
    if check.outcome == "pass":
        ET.SubElement(case, "system-out").text = text
        return
    if check.outcome == "skipped":
        ET.SubElement(case, "skipped", {"message": message}).text = text
        return
    tag = "error" if check.outcome == "error" else "failure"
    if check.outcome == "inconclusive":
        message, text = f"inconclusive: {message}", f"inconclusive: {text}"
    ET.SubElement(case, tag, {"message": message, "type": check.outcome}).text = text
