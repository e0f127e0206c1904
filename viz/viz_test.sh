#!/usr/bin/env bash
# Copyright The my_alloc Authors
# SPDX-License-Identifier: Apache-2.0

# The command line: what it prints, writes and returns.
#
#   viz_test.sh VIZ SYNTHETIC_LOG

set -uo pipefail

viz=$PWD/$1
synthetic_log=$PWD/$2
failures=0
cd "$TEST_TMPDIR" || exit 1

# expect NAME STATUS PATTERN COMMAND...: the exit code, and an extended regular
# expression that a line of the output must match.
expect() {
  local name=$1 wanted=$2 pattern=$3 status=0
  shift 3
  "$@" >output.txt 2>&1 || status=$?
  if [ "$status" != "$wanted" ]; then
    echo "FAIL: $name: exit code $status instead of $wanted"
  elif ! grep -Eq -e "$pattern" output.txt; then
    echo "FAIL: $name: no line matches $pattern"
  else
    return
  fi
  sed 's/^/    /' output.txt
  failures=$((failures + 1))
}

absent() {
  if [ -e "$1" ]; then
    echo "FAIL: $1 was written"
    failures=$((failures + 1))
  fi
}

"$synthetic_log" --events=20000 whole.heaplog || exit 1
size=$(stat -c %s whole.heaplog)

expect "whole log" 0 '^report: out\.html$' "$viz" report whole.heaplog -o out.html
expect "figures" 0 '^allocations: [0-9]+$' "$viz" report whole.heaplog --o=out.html
expect "same page again" 0 '^same$' sh -c "
  '$viz' report whole.heaplog -o /dev/stdout --quiet | cmp - out.html && echo same"
expect "output named after the log" 0 '^report: whole\.html$' "$viz" report whole.heaplog
expect "page" 0 '<title>' head -c 20000 whole.html
expect "quiet" 0 '^0$' sh -c "'$viz' report whole.heaplog --quiet | wc -c"

expect "no command" 1 'viz report run\.heaplog' "$viz"
expect "unknown command" 1 "unknown command 'draw'" "$viz" draw
expect "no log" 1 'report takes one log, not 0' "$viz" report
expect "two logs" 1 'report takes one log, not 2' "$viz" report a b
expect "unknown flag" 1 "Unknown command line flag 'nope'" "$viz" report --nope a
expect "help" 1 'makes one HTML file' "$viz" --help

expect "missing log" 1 'none\.heaplog: .*No such file' "$viz" report none.heaplog -o no.html
echo "this is not a log" >text.heaplog
expect "not a log" 1 'text\.heaplog: byte [0-9]+: ' "$viz" report text.heaplog -o no.html
: >empty.heaplog
expect "empty file" 1 'empty\.heaplog: ' "$viz" report empty.heaplog -o no.html
expect "folder as log" 1 'viz: ' "$viz" report . -o no.html
absent no.html
head -c 30 whole.heaplog >header.heaplog
expect "log that ends in its header" 1 'header\.heaplog: byte 30: .*; .*record the program again' \
  "$viz" report header.heaplog -o no.html
head -c 4500 whole.heaplog >start.heaplog
expect "log without an event" 1 'start\.heaplog: byte .*no event before that can be read' \
  "$viz" report start.heaplog -o no.html
mkfifo pipe
expect "pipe as log" 1 'pipe: .*not a regular file' timeout 60 "$viz" report pipe -o no.html
absent no.html
expect "folder as output" 1 'cannot write' "$viz" report whole.heaplog -o .
expect "output into no folder" 1 'No such file' "$viz" report whole.heaplog -o none/out.html
expect "report over the log" 1 'the report would replace the log' \
  "$viz" report whole.heaplog -o ./whole.heaplog
expect "the log is as it was" 0 "^$size\$" stat -c %s whole.heaplog
expect "full disk" 1 'No space left.*; give another place' "$viz" report whole.heaplog -o /dev/full
expect "full standard output" 1 'the report is in out.html, but .*No space left' \
  sh -c '"$1" report whole.heaplog -o out.html >/dev/full' sh "$viz"
# Half of the page: ThreadSanitizer itself writes a file of 512 KiB at its start.
"$synthetic_log" --events=200000 large.heaplog || exit 1
"$viz" report large.heaplog -o large.html --quiet || exit 1
limit=$(($(stat -c %s large.html) / 2 / 512))
expect "file that may not grow" 1 'cannot write no\.html: File too large; give another' \
  sh -c "ulimit -f $limit; exec '$viz' report large.heaplog -o no.html"
absent no.html
expect "nothing half written" 0 '^0$' sh -c 'ls | grep -c "^no\.html" || true'
expect "what is there stays when writing fails" 0 '^stays$' sh -c "
  cp out.html kept.html
  (ulimit -f $limit; '$viz' report large.heaplog -o kept.html)
  cmp out.html kept.html && echo stays"

# The first chunk is 64 KiB behind the file's header.
head -c $((size * 2 / 3)) whole.heaplog >cut.heaplog
expect "cut log" 2 'cut\.heaplog: byte [0-9]+: .*; the report covers the [0-9]+ events before that' \
  "$viz" report cut.heaplog -o cut.html
expect "cut log, one line of errors" 0 '^1$' sh -c "
  '$viz' report cut.heaplog -o cut.html 2>&1 >/dev/null | wc -l"
expect "page of a cut log" 0 'id="data"' grep -o 'id="data"' cut.html

[ "$failures" -eq 0 ] || exit 1
echo "all passed"
