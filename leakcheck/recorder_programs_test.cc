// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Programs that nobody here wrote run under libleakcheck.so: same output, same
// exit code, and logs that open, are complete and consistent.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <string>
#include <vector>

#include "leakcheck/log_replay.h"
#include "leakcheck/recorder_testing.h"

namespace {

using leakcheck::LogReplay;
using leakcheck::RecordedRun;
using leakcheck::RunResult;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using Names = std::vector<std::string>;

class RecorderProgramsTest : public ::testing::Test {
 protected:
  // Runs it bare and recorded and compares; returns the recorded run's result.
  RunResult RunBoth(const Names &arguments, const Names &environment = {}) {
    RunResult bare = run_.RunBare(arguments, environment);
    EXPECT_NE(bare.exit_code, 127)
        << arguments[0] << " is missing; third_party/debian/setup.sh";
    RunResult recorded = run_.Run(arguments, environment);
    EXPECT_EQ(recorded.exit_code, bare.exit_code);
    EXPECT_TRUE(recorded.output == bare.output) << recorded.output;
    EXPECT_EQ(recorded.errors, bare.errors);
    CheckLogs();
    return recorded;
  }

  // All logs are consistent, those of forked children too.
  void CheckLogs() {
    for (const std::string &name : run_.Logs()) {
      LogReplay replay(run_.Path(name));
      EXPECT_THAT(replay.problems(), IsEmpty())
          << name << " " << replay.info().executable;
      EXPECT_EQ(replay.counts().lost, 0u);
      if (replay.info().clean_end) {
        EXPECT_GT(replay.live().size(), 0u) << replay.info().executable;
        EXPECT_GT(replay.peak_live_bytes(), 0u);
        EXPECT_GE(replay.mapped_bytes(), replay.live_bytes());
      }
      CheckStacks(replay);
    }
  }

  // Nearly all stacks are followed to their end, and all lie in modules.
  static void CheckStacks(const LogReplay &replay) {
    std::vector<bool> seen(1 << 20);
    size_t stacks = 0;
    size_t whole = 0;
    size_t unknown_frames = 0;
    const std::vector<heaplog_module_t> modules = replay.Modules();
    for (const heaplog_event_t &event : replay.events()) {
      // What a child inherited has no stack.
      if (event.kind != HEAPLOG_ALLOC || event.stack_id == 0 ||
          event.stack_id >= seen.size() || seen[event.stack_id]) {
        continue;
      }
      seen[event.stack_id] = true;
      std::vector<uint64_t> frames = replay.Stack(event.stack_id);
      EXPECT_FALSE(frames.empty()) << "stack " << event.stack_id;
      bool cut = frames.empty() || frames.back() == 0;
      if (cut && !frames.empty()) {
        frames.pop_back();
      }
      stacks++;
      whole += !cut || frames.size() == 64;
      for (uint64_t frame : frames) {
        unknown_frames += std::none_of(modules.begin(), modules.end(),
                                       [frame](const heaplog_module_t &module) {
                                         return frame >= module.start_address &&
                                                frame <= module.end_address;
                                       });
      }
    }
    EXPECT_EQ(whole, stacks) << replay.info().executable;
    EXPECT_EQ(unknown_frames, 0u) << replay.info().executable;
  }

  std::string Write(const std::string &name, const std::string &content) {
    std::ofstream(run_.Path(name)) << content;
    return run_.Path(name);
  }

  RecordedRun run_;
};

TEST_F(RecorderProgramsTest, Sqlite) {
  RunResult result = RunBoth(
      {"sqlite3", ":memory:",
       "create table t(a integer primary key, b text);"
       "with recursive n(i) as (select 1 union all select i + 1 from n where "
       "i < 5000) insert into t select i, 'row ' || i from n;"
       "create index u on t(b);"
       "select count(*), max(b) from t where b like '%99%';"});
  EXPECT_EQ(result.output, "95|row 999\n");
  ASSERT_THAT(run_.LogsOf(result.pid), SizeIs(1));
  LogReplay replay(run_.Path(run_.LogsOf(result.pid)[0]));
  // Newer versions ask for ten times less.
  EXPECT_GT(replay.counts().allocs, 300u);
  EXPECT_GT(replay.peak_live_bytes(), 100000u);
}

TEST_F(RecorderProgramsTest, Python) {
  std::string script = Write("script.py", R"(
import json, threading
table = {str(i): [i] * 10 for i in range(2000)}
text = json.dumps(table)
results = []
def work(n):
    results.append(sum(len(json.loads(text)) for _ in range(n)))
threads = [threading.Thread(target=work, args=(3,)) for _ in range(4)]
[t.start() for t in threads]
[t.join() for t in threads]
print(len(text), results)
)");
  // Python's own allocator off, so that every object is a block.
  RunResult result =
      RunBoth({"/usr/bin/python3", script}, {"PYTHONMALLOC=malloc"});
  EXPECT_EQ(result.exit_code, 0);
  LogReplay replay(run_.Path(run_.LogsOf(result.pid).at(0)));
  EXPECT_GT(replay.counts().allocs, 50000u);
  EXPECT_THAT(replay.Threads(), SizeIs(5));
}

TEST_F(RecorderProgramsTest, PythonWithChildren) {
  std::string script = Write("script.py", R"(
import os, subprocess, multiprocessing
def square(x):
    return x * x
if __name__ == '__main__':
    print(subprocess.run(['echo', 'hello'], capture_output=True).stdout)
    with multiprocessing.Pool(2) as pool:
        print(pool.map(square, range(10)))
    pid = os.fork()
    if pid == 0:
        os.execvp('echo', ['echo', 'executed'])
    os.waitpid(pid, 0)
)");
  RunResult result = RunBoth({"/usr/bin/python3", script});
  EXPECT_EQ(result.exit_code, 0);
}

TEST_F(RecorderProgramsTest, Perl) {
  RunBoth({"perl", "-e",
           "my %h; for my $i (1 .. 5000) { $h{\"k$i\"} = [$i, \"v$i\"]; } "
           "my $s = 0; $s += $h{$_}[0] for sort keys %h; print \"$s\\n\"; "
           "open(my $p, '-|', 'echo piped') or die; print <$p>;"});
}

TEST_F(RecorderProgramsTest, BashWithPipelinesAndSubshells) {
  RunResult result = RunBoth(
      {"/bin/bash", "-c",
       "set -o pipefail; seq 1 1000 | sort -rn | (read first; echo $first; "
       "cat > /dev/null); x=$(echo substituted | tr a-z A-Z); echo $x; "
       "(exit 3); echo $?; for i in 1 2 3; do echo $i & wait; done; "
       "cat <(echo process) ; exec /bin/echo last"});
  EXPECT_EQ(result.exit_code, 0);
  // bash itself, and what it executed in its place.
  EXPECT_THAT(run_.LogsOf(result.pid), SizeIs(2));
}

TEST_F(RecorderProgramsTest, Git) {
  Names environment = {"HOME=" + run_.folder(), "GIT_CONFIG_NOSYSTEM=1"};
  RunResult result =
      RunBoth({"/bin/bash", "-ec",
               "rm -rf repo; git init -q -b main repo; cd repo; "
               "git config user.name n; git config user.email e@example.com; "
               "for i in 1 2 3; do seq $i 500 > file$i; git add .; "
               "GIT_AUTHOR_DATE=@1000000000 GIT_COMMITTER_DATE=@1000000000 "
               "git commit -q -m commit$i; done; git log --stat; git gc -q; "
               "git fsck; git diff HEAD~2"},
              environment);
  EXPECT_EQ(result.exit_code, 0);
}

TEST_F(RecorderProgramsTest, GccCompilesTheSameObject) {
  std::string source =
      Write("source.c",
            "#include <stdio.h>\n#include <stdlib.h>\n#include <math.h>\n"
            "static int f(int x) { return x > 1 ? f(x - 1) + f(x - 2) : x; }\n"
            "int main(void) { printf(\"%d\\n\", f(20)); return 0; }\n");
  Names command = {"gcc", "-O2", "-o", "program", source};
  ASSERT_EQ(run_.RunBare(command).exit_code, 0);
  std::ifstream bare(run_.Path("program"), std::ios::binary);
  std::string expected((std::istreambuf_iterator<char>(bare)),
                       std::istreambuf_iterator<char>());
  RunBoth(command);
  std::ifstream recorded(run_.Path("program"), std::ios::binary);
  std::string actual((std::istreambuf_iterator<char>(recorded)),
                     std::istreambuf_iterator<char>());
  EXPECT_TRUE(actual == expected);
  EXPECT_EQ(run_.RunBare({run_.Path("program")}).output, "6765\n");
}

TEST_F(RecorderProgramsTest, ExitCodesAndSignalsPass) {
  EXPECT_EQ(RunBoth({"/bin/sh", "-c", "exit 41"}).exit_code, 41);
  EXPECT_EQ(RunBoth({"/bin/sh", "-c", "kill -TERM $$"}).exit_code, -15);
}

}  // namespace
