#!/usr/bin/env bash
# Copyright The my_alloc Authors
# SPDX-License-Identifier: Apache-2.0

# What does recording cost whole programs? Runs each program bare, on the heap
# alone, recorded, and under heaptrack if that is installed; all of them in
# turn, and prints the least CPU time (user and system, children included) of
# each, and its ratio to the bare run.
#
#   bazel run //leakcheck:recorder_compare -- [ROUNDS]
#
# Ratios of a busy machine are too high for short programs: look at the load.

set -euo pipefail
export LC_ALL=C

rounds=${1:-5}
here=$PWD
recorder=$here/leakcheck/libleakcheck.so
heap=$here/heap/libheap.so
tool=$here/leakcheck/heaplog_tool
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

cat >work.sql <<'EOF'
create table t(a integer primary key, b text, c real);
with recursive n(i) as (select 1 union all select i + 1 from n where i < 200000)
  insert into t select i, 'row ' || i || ' ' || hex(i * 7919), i * 1.5 from n;
create index tb on t(b);
select count(*), sum(c) from t where b like '%99%';
select b, c from t order by c desc limit 3;
EOF

cat >work.py <<'EOF'
import collections, json
table = collections.defaultdict(list)
for i in range(60000):
    table[i % 997].append({'k': str(i), 'v': [i] * 5})
text = json.dumps(table)
print(len(text), len(json.loads(text)))
class Node:
    def __init__(self, x):
        self.x = [x] * 3
        self.y = {'a': x}
nodes = sorted((Node(i) for i in range(50000)), key=lambda node: -node.x[0])
print(nodes[0].x)
EOF

cat >work.pl <<'EOF'
my %h;
for my $i (1 .. 200000) { $h{"k$i"} = [$i, "v$i"]; }
my $sum = 0;
for (sort keys %h) { $sum += $h{$_}[0]; }
my $text = join ";", map { join ",", $_, $_ * 2 } 1 .. 100000;
print "$sum ", scalar(split /;/, $text), "\n";
EOF

# cpu COMMAND...: milliseconds of CPU time.
cpu() {
  local TIMEFORMAT='%U %S' times
  times=$({ time "$@" >/dev/null 2>&1; } 2>&1)
  awk -v t="$times" 'BEGIN { split(t, a, " "); printf "%d", (a[1] + a[2]) * 1000 }'
}

# least NAME VALUE: keeps the smaller one in the variable least_NAME.
least() {
  local -n best=least_$1
  if [ -z "${best:-}" ] || [ "$2" -lt "$best" ]; then
    best=$2
  fi
}

# compare NAME COMMAND...
compare() {
  local name=$1 least_bare='' least_heap='' least_recorded='' least_heaptrack=''
  shift
  for ((i = 0; i < rounds; i++)); do
    rm -f run.heaplog run.heaptrack*
    least bare "$(cpu "$@")"
    least heap "$(cpu env LD_PRELOAD="$heap" "$@")"
    least recorded "$(cpu env LD_PRELOAD="$recorder" LEAKCHECK_LOG=run.heaplog "$@")"
    if command -v heaptrack >/dev/null; then
      least heaptrack "$(cpu heaptrack -o run.heaptrack "$@")"
    fi
  done
  report "$name" "$least_bare" "$least_heap" "$least_recorded" \
    "${least_heaptrack:-0}"
}

report() {
  "$tool" info run.heaplog |
    awk -v name="$1" -v bare="$2" -v heap="$3" -v recorded="$4" -v other="$5" '
    $1 == "alloc" || $1 == "free" || $1 == "resize" { events += $2 }
    $1 == "file" { bytes = $2 }
    END {
      printf "%-16s bare %5.2f s  heap %5.2f  recorded %5.2f", name,
        bare / 1000, heap / bare, recorded / bare
      if (other > 0) printf "  heaptrack %5.2f", other / bare
      printf "  %8d events  %5.2f bytes an event  %4d ns an event\n", events,
        bytes / events, (recorded - heap) * 1e6 / events
    }'
}

compare sqlite3 sqlite3 :memory: '.read work.sql'
PYTHONMALLOC=malloc compare python3 /usr/bin/python3 work.py
compare python3-pymalloc /usr/bin/python3 work.py
compare perl perl work.pl
