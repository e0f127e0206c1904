# Copyright The my_alloc Authors
# SPDX-License-Identifier: Apache-2.0

"""CPU time and peak memory of programs on libheap.so and on other mallocs.

  bazel run //heap:benchmark -- [option...]

Each workload (benchmark_workload.c) and each real program found on this system
runs in a process of its own on one malloc after the other, round after round,
so that a busy or slow moment hits all of them. Printed are the medians, user
and system time together, and the peak resident size; then how far each malloc
is from the best *other* malloc of each row, as geometric means: below 1 is
better than all of them. Then what the checks cost: the same library compiled
without them runs as well, but is nobody's peer.

Peers are glibc and what the dynamic linker finds of libjemalloc.so.2,
libmimalloc.so.2, libtcmalloc_minimal.so.4; others by --peer NAME=FILE.
"""

import argparse
import collections
import html
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile

OURS = "my_alloc"
UNCHECKED = "without checks"
KNOWN_PEERS = {
    "jemalloc": "libjemalloc.so.2",
    "mimalloc": "libmimalloc.so.2",
    "gperftools": "libtcmalloc_minimal.so.4",
}
WORKLOADS = ["small", "pair", "tree", "server", "handover", "exchange", "churn",
             "realloc", "regrow", "medium", "large", "fragment"]

Cost = collections.namedtuple("Cost", "cpu_s peak_bytes")


class Failure(Exception):
    """A program that ended otherwise than it should."""


def environment():
    env = dict(os.environ, LC_ALL="C.UTF-8", PYTHONMALLOC="malloc",
               PYTHONHASHSEED="0")
    env.pop("LD_PRELOAD", None)
    return env


class Command:
    """A program that runs to its end."""

    def __init__(self, name, *command):
        self.name = name
        self.command = command

    def is_found(self):
        return shutil.which(self.command[0]) is not None

    def meet(self, process):
        """What happens to the program while it runs."""

    def run(self, measure, library):
        """Returns what the program used; `library` is preloaded."""
        with open(os.devnull, "rb") as null:
            process = subprocess.Popen(
                [measure, "cost", library, *self.command], env=environment(),
                stdin=null, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            try:
                self.meet(process)
                output, _ = process.communicate()
            except BaseException:
                process.kill()
                process.wait()
                raise
        if process.returncode != 0:
            text = output.decode(errors="replace").strip().splitlines()
            raise Failure(f"{self.name} ended with {process.returncode}"
                          f"{': ' + text[-1] if text else ''}")
        with open("cost", encoding="utf-8") as file:
            cpu_us, peak_kib = map(int, file.read().split())
        return Cost(cpu_us / 1e6, peak_kib * 1024)


class Redis(Command):
    """redis-server, while redis-benchmark, which is on glibc, asks it."""

    def __init__(self):
        # Debian's redis-tools has the server under this name; it goes by the
        # one that it is called by.
        server = shutil.which("redis-server") or shutil.which("redis-check-rdb")
        if server:
            os.symlink(server, "redis-server")
        super().__init__("redis", "./redis-server", "--port", "0",
                         "--unixsocket", "redis.socket", "--save", "",
                         "--appendonly", "no")

    def is_found(self):
        if not super().is_found():
            return False
        # What jemalloc's mallocx() gives out no other malloc can free.
        with open("redis-server", "rb") as server:
            return b"mallocx" not in server.read()

    def meet(self, process):
        for line in process.stdout:
            if b"ready to accept connections at" in line:
                break
        else:
            raise Failure("redis-server did not start")
        for tests, size in [("set,get,lpush,lpop,hset,zadd", "100"),
                            ("set,get", "3000")]:
            self.ask("redis-benchmark", "-q", "-t", tests, "-d", size, "-n",
                     "100000", "-r", "100000", "-P", "16", "-c", "20")
        self.ask("redis-cli", "shutdown", "nosave")

    def ask(self, program, *arguments):
        try:
            subprocess.run([program, "-s", "redis.socket", *arguments],
                           env=environment(), stdin=subprocess.DEVNULL,
                           stdout=subprocess.DEVNULL, check=True, timeout=300)
        except subprocess.SubprocessError as error:
            raise Failure(str(error)) from error


SQL = """
create table t(a integer primary key, b text, c real);
with recursive n(i) as (select 1 union all select i + 1 from n where i < 300000)
  insert into t select i, 'row ' || i || ' ' || hex(i * 7919), i * 1.5 from n;
create index tb on t(b);
select count(*), sum(c) from t where b like '%99%';
select b, c from t order by c desc limit 3;
select substr(b, 1, 6), count(*) from t group by 1 order by 2 desc limit 5;
delete from t where a % 3 = 0;
"""

PYTHON = """
import collections, json
table = collections.defaultdict(list)
for i in range(80000):
    table[i % 997].append({'k': str(i), 'v': [i] * 5})
text = json.dumps(table)
print(len(text), len(json.loads(text)))
class Node:
    def __init__(self, x):
        self.x = [x] * 3
        self.y = {'a': x}
nodes = sorted((Node(i) for i in range(80000)), key=lambda node: -node.x[0])
for i in range(20):
    nodes = [Node(i + j) for j in range(20000)]
print(nodes[0].x)
"""

PERL = r"""
my %h;
for my $i (1 .. 200000) { $h{"k$i"} = [$i, "v$i"]; }
my $sum = 0;
for (sort keys %h) { $sum += $h{$_}[0]; }
for my $i (1 .. 200000) { delete $h{"k$i"} if $i % 3; }
my $text = join ";", map { join ",", $_, $_ * 2 } 1 .. 200000;
print "$sum ", scalar(split /;/, $text), "\n";
"""

AWK = r"""
BEGIN {
  for (i = 0; i < 300000; i++) { a["k" i] = "value " i * 7919; n += length(a["k" i]) }
  for (i = 0; i < 300000; i += 2) delete a["k" i]
  for (k in a) { split(a[k], p, " "); s += p[2]; b[p[2] % 1000] = b[p[2] % 1000] "," k }
  for (k in b) m += gsub(/k/, "<&>", b[k])
  print n, s, m
}
"""

LUA = """
local t = {}
for i = 1, 300000 do t[i] = { id = i, name = 'n' .. i, list = { i, i + 1 } } end
for i = 1, 300000, 2 do t[i] = nil end
local parts = {}
for r = 1, 5 do
  for i = 1, 100000 do parts[i] = ('%d:%s'):format(i * r, ('x'):rep(i % 40)) end
end
print(#table.concat(parts, ','))
"""

POSTSCRIPT = """%!PS
/Times-Roman findfont 9 scalefont setfont
/page {
  0 1 70 { /row exch def
    0 1 11 { /column exch def
      column 48 mul 20 add row 11 mul 20 add moveto
      row column mul 17 mul 20 string cvs show
      gsave column 25 div row 80 div 0.5 setrgbcolor
      newpath column 48 mul 20 add row 11 mul 20 add 4 0 360 arc fill grestore
    } for
  } for
  showpage
} def
1 1 40 { pop page } for
"""


def c_source():
    """A file large enough to keep the compiler busy for a second."""
    lines = ["struct s { int a, b; double d[4]; };"]
    for i in range(900):
        lines.append(
            f"int f{i}(struct s *p, int n) {{ int t = {i}; "
            f"for (int j = 0; j < n; j++) {{ if (p[j].a > t) t += p[j].b * {i};"
            f" else t ^= (int)p[j].d[j & 3]; switch (t & 7) {{ case 1: t += 3; "
            f"break; case {i % 5 + 2}: t *= 7; break; default: t--; }} }} "
            f"return t + (n > 3 ? f{max(i - 1, 0)}(p, n - 1) : 0); }}")
    return "\n".join(lines) + "\n"


def write(name, text):
    with open(name, "w", encoding="utf-8") as file:
        file.write(text)
    return name


def compiler_proper():
    if not shutil.which("gcc"):
        return "cc1"
    return subprocess.run(["gcc", "-print-prog-name=cc1"], check=True,
                          stdout=subprocess.PIPE, text=True).stdout.strip()


def real_programs():
    return [
        Command("sqlite3", "sqlite3", "-init", write("work.sql", SQL),
                ":memory:", ""),
        Redis(),
        Command("python3", "/usr/bin/python3", write("work.py", PYTHON)),
        Command("cc1", compiler_proper(), "-quiet", "-O1", "-o", "/dev/null",
                write("work.c", c_source())),
        Command("perl", "perl", write("work.pl", PERL)),
        Command("gawk", "gawk", "-f", write("work.awk", AWK)),
        Command("lua", "lua5.4", write("work.lua", LUA)),
        Command("ghostscript", "gs", "-q", "-dNOPAUSE", "-dBATCH",
                "-sDEVICE=ppmraw", "-r200", "-sOutputFile=/dev/null",
                write("work.ps", POSTSCRIPT)),
    ]


def find_peers(measure, given):
    """Returns {name: library} of the mallocs that can be preloaded here."""
    peers = {"glibc": ""}
    for name, library in list(KNOWN_PEERS.items()) + given:
        result = subprocess.run([measure, "cost", library, "true"],
                                env=environment(), stderr=subprocess.PIPE,
                                check=False)
        if not result.stderr and result.returncode == 0:
            peers[name] = library
        elif (name, library) in given:
            sys.exit(f"benchmark: {name}: {library} cannot be preloaded")
    return peers


def median(costs):
    return Cost(*(statistics.median(values) for values in zip(*costs)))


def measure_all(measure, programs, mallocs, rounds):
    """Returns {program: {malloc: Cost}}, medians; leaves out what fails."""
    results = {}
    for program in programs:
        costs = {name: [] for name in mallocs}
        for _ in range(rounds):
            for name in list(costs):
                try:
                    costs[name].append(program.run(measure, mallocs[name]))
                except Failure as failure:
                    print(f"  {name}: {failure}")
                    del costs[name]
        results[program.name] = {name: median(list_)
                                 for name, list_ in costs.items()}
        print_row(program.name, results[program.name], mallocs)
    return results


def print_head(mallocs):
    print(f"{'':12}" + "".join(f"{name:>18}" for name in mallocs))


def print_row(program, costs, mallocs):
    cells = []
    for name in mallocs:
        cost = costs.get(name)
        cells.append(f"{'failed':>18}" if cost is None else
                     f"{cost.cpu_s:8.2f} s{cost.peak_bytes / 2**20:6.1f} M")
    print(f"{program:12}" + "".join(f"{cell:>18}" for cell in cells),
          flush=True)


def mean_and_worst(ratios):
    """Of {program: ratio}: the geometric mean, the worst program, its ratio."""
    if not ratios:
        return None
    mean = math.exp(statistics.fmean(map(math.log, ratios.values())))
    worst = max(ratios, key=ratios.get)
    return mean, worst, ratios[worst]


def distance(results, name, field):
    """Geometric mean and worst of name's cost by the best other peer's."""
    ratios = {}
    for program, costs in results.items():
        others = [getattr(cost, field) for other, cost in costs.items()
                  if other not in (name, OURS, UNCHECKED)]
        if name in costs and others and min(others) > 0:
            ratios[program] = getattr(costs[name], field) / min(others)
    return mean_and_worst(ratios)


def print_price(results):
    """What the checks cost, by the library that has none."""
    for field, title in [("cpu_s", "CPU time"), ("peak_bytes", "peak memory")]:
        ratios = {program: getattr(costs[OURS], field) /
                           getattr(costs[UNCHECKED], field)
                  for program, costs in results.items()
                  if OURS in costs and UNCHECKED in costs
                  and getattr(costs[UNCHECKED], field) > 0}
        row = mean_and_worst(ratios)
        if row is not None:
            mean, worst, ratio = row
            print(f"  {title:12} {mean:.3f}, worst {ratio:.2f} ({worst})")


def summarise(results, mallocs):
    summary = []
    for field, title in [("cpu_s", "CPU time"), ("peak_bytes", "peak memory")]:
        rows = [(name, distance(results, name, field)) for name in mallocs
                if name != UNCHECKED]
        rows = [(name, row) for name, row in rows if row is not None]
        summary.append((title, sorted(rows, key=lambda row: row[1][0])))
    return summary


def print_summary(summary):
    for title, rows in summary:
        print(f"\n{title} by that of the best other malloc, geometric mean:")
        for name, (mean, worst, ratio) in rows:
            print(f"  {name:12} {mean:5.2f} {'#' * round(mean * 20):60} "
                  f"worst {ratio:.2f} ({worst})")


def write_html(path, results, summary, mallocs):
    out = ["<!doctype html><meta charset=utf-8><title>malloc benchmark</title>",
           "<style>body{font:14px sans-serif;margin:2em}td,th{padding:2px 8px;"
           "text-align:right}td:first-child{text-align:left}.bar{display:inline"
           "-block;height:11px;background:#4878a8}.ours .bar{background:#c8553d}"
           "</style><h1>malloc benchmark</h1>"]
    for title, rows in summary:
        out.append(f"<h2>{title} by that of the best other malloc, geometric "
                   "mean</h2><table>")
        for name, (mean, worst, ratio) in rows:
            out.append(
                f"<tr class='{'ours' if name == OURS else ''}'>"
                f"<td>{html.escape(name)}<td>{mean:.2f}<td style='text-align:"
                f"left'><span class=bar style='width:{mean * 160:.0f}px'></span>"
                f"<td>worst {ratio:.2f} ({html.escape(worst)})")
        out.append("</table>")
    for field, title, scale in [("cpu_s", "CPU seconds", 1),
                                ("peak_bytes", "Peak resident MiB", 2**20)]:
        out.append(f"<h2>{title}</h2><table><tr><th>")
        out += [f"<th>{html.escape(name)}" for name in mallocs]
        for program, costs in results.items():
            out.append(f"<tr><td>{html.escape(program)}")
            best = min((getattr(cost, field) for name, cost in costs.items()
                        if name != UNCHECKED), default=None)
            for name in mallocs:
                if name not in costs:
                    out.append("<td>failed")
                    continue
                value = getattr(costs[name], field)
                text = f"{value / scale:.2f}"
                out.append(f"<td><b>{text}</b>" if value == best
                           else f"<td>{text}")
        out.append("</table>")
    write(path, "".join(out))


def parse_arguments():
    parser = argparse.ArgumentParser(
        prog="benchmark", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--percent", type=int, default=100,
                        help="of each workload's usual length")
    parser.add_argument("--only", action="append", default=[], metavar="NAME",
                        help="a workload or program; may be repeated")
    parser.add_argument("--no-programs", action="store_true",
                        help="the workloads of this folder only")
    parser.add_argument("--peer", action="append", default=[],
                        metavar="NAME=FILE", help="one more malloc")
    parser.add_argument("--html", metavar="FILE", help="write a page as well")
    for file in ["library", "unchecked", "workload", "measure"]:
        parser.add_argument(file, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for peer in arguments.peer:
        if "=" not in peer:
            parser.error(f"--peer {peer}: not NAME=FILE")
    if arguments.rounds < 1:
        parser.error("--rounds: at least 1")
    return arguments


def main():
    arguments = parse_arguments()
    started_in = os.environ.get("BUILD_WORKING_DIRECTORY", os.getcwd())
    library, unchecked, workload, measure = map(os.path.abspath, (
        arguments.library, arguments.unchecked, arguments.workload,
        arguments.measure))
    given = []
    for peer in arguments.peer:
        name, file = peer.split("=", 1)
        path = os.path.join(started_in, file)
        given.append((name, path if os.path.exists(path) else file))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        mallocs = {OURS: library, UNCHECKED: unchecked,
                   **find_peers(measure, given)}
        programs = [Command(name, workload, name, str(arguments.percent))
                    for name in WORKLOADS]
        if not arguments.no_programs:
            programs += real_programs()
        if arguments.only:
            programs = [program for program in programs
                        if program.name in arguments.only]
        for program in programs:
            if not program.is_found():
                print(f"{program.name} is not installed, or has a malloc of "
                      "its own: left out")
        print_head(mallocs)
        results = measure_all(
            measure, [program for program in programs if program.is_found()],
            mallocs, arguments.rounds)
        os.chdir(started_in)
    summary = summarise(results, mallocs)
    print_summary(summary)
    print("\nwith checks, by the same without them, geometric mean:")
    print_price(results)
    if arguments.html:
        write_html(arguments.html, results, summary, mallocs)
        print(f"\nwritten to {os.path.abspath(arguments.html)}")


if __name__ == "__main__":
    main()
