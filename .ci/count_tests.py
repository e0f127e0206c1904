# Copyright The my_alloc Authors
# SPDX-License-Identifier: Apache-2.0
"""Counts test results in Bazel's build event files.

    count_tests.py FOLDER FAILED_CHECKS NAME...

FOLDER holds NAME.json (--build_event_json_file) and NAME.status (exit code)
for each run of `bazel test`. Prints a line a run, the tests that failed, and
last `N passed, N failed`. A test that was asked for and has no result failed;
so did a run without a test, one without an exit code, and one whose exit code
has no failure to explain it. FAILED_CHECKS is added to the failures.
"""

import json
import pathlib
import sys


def read_events(path):
    """Yields the events of one run; a cut line, as of a killed Bazel, ends it."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                yield json.loads(line)
            except ValueError:
                return


def results_of(path):
    """Returns {test label: overall status} of one run."""
    results = {}
    for event in read_events(path):
        ident = event.get("id", {})
        if "targetConfigured" in ident:
            kind = event.get("configured", {}).get("targetKind", "")
            if kind.endswith("_test rule"):
                label = ident["targetConfigured"]["label"]
                results.setdefault(label, "FAILED_TO_BUILD")
        elif "testSummary" in ident:
            summary = event.get("testSummary", {})
            results[ident["testSummary"]["label"]] = summary.get(
                "overallStatus", "NO_STATUS"
            )
        elif "targetSkipped" in ident:
            results.pop(ident["targetSkipped"].get("label"), None)
    return results


def read_exit_code(path):
    """Returns the number in the file as text, or what is wrong with it."""
    try:
        return str(int(path.read_text(encoding="ascii")))
    except (OSError, ValueError):
        return "unknown"


def main(folder, failed_checks, names):
    passed = 0
    failed = failed_checks
    for name in names:
        results = results_of(pathlib.Path(folder, name + ".json"))
        bad = {k: v for k, v in results.items() if v != "PASSED"}
        exit_code = read_exit_code(pathlib.Path(folder, name + ".status"))
        if not results:
            bad["no test ran"] = "exit code " + exit_code
        elif exit_code != "0" and not bad:
            bad["bazel"] = "exit code " + exit_code
        good = sum(1 for v in results.values() if v == "PASSED")
        print("%-8s %3d passed, %d failed" % (name, good, len(bad)))
        for label, status in sorted(bad.items()):
            print("  %s: %s" % (label, status))
        passed += good
        failed += len(bad)
    if failed_checks:
        print("%d other checks failed, see FAILED above" % failed_checks)
    print("%d passed, %d failed" % (passed, failed))
    return 0 if failed == 0 and passed > 0 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
