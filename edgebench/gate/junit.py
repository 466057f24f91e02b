"""A check as JUnit XML: one test case a benchmark and metric.

The form is that of https://github.com/testmoapp/junitxml, which CI servers agree on. A regression
is a ``failure``; a broken environment is an ``error``; undecided is ``skipped``, with what is
missing as its message.
"""

from __future__ import annotations

from xml.etree import ElementTree

from edgebench.gate.outcome import Finding, Result
from edgebench.gate.sequential import Decision


def to_junit(result: Result) -> str:
    """The document, with its declaration."""
    cases = [_case(result, finding) for finding in result.findings]
    if result.broken and not cases:
        case = ElementTree.Element("testcase", classname=result.device, name="environment")
        _child(case, "error", "; ".join(result.broken))
        cases = [case]
    counts = {
        "tests": len(cases),
        "failures": sum(case.find("failure") is not None for case in cases),
        "errors": sum(case.find("error") is not None for case in cases),
        "skipped": sum(case.find("skipped") is not None for case in cases),
    }
    attributes = {name: str(count) for name, count in counts.items()}
    root = ElementTree.Element("testsuites", attributes, time=f"{result.seconds:.1f}")
    suite = ElementTree.SubElement(
        root,
        "testsuite",
        attributes,
        name=f"edgebench check {result.device}",
        time=f"{result.seconds:.1f}",
    )
    suite.extend(cases)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, "unicode") + "\n"


def _case(result: Result, finding: Finding) -> ElementTree.Element:
    case = ElementTree.Element(
        "testcase",
        classname=f"{result.device}.{finding.benchmark}",
        name=finding.metric,
        time=f"{finding.seconds:.1f}",
    )
    text = f"{finding.label} {finding.text()}" + (f": {finding.note}" if finding.note else "")
    if result.broken:
        _child(case, "error", "broken environment: " + "; ".join(result.broken))
    elif finding.decision is Decision.REGRESSION:
        _child(case, "failure", text)
    elif finding.decision is Decision.UNDECIDED:
        _child(case, "skipped", text)
    else:
        ElementTree.SubElement(case, "system-out").text = text
    return case


def _child(case: ElementTree.Element, tag: str, message: str) -> None:
    ElementTree.SubElement(case, tag, message=message).text = message
