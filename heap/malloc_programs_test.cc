// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Programs that nobody here wrote run on libheap.so: they print what they print
// without it, end with the same exit code, and no free of theirs is taken for
// a misuse.

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace {

// Compiled once for each variant.
#ifdef HEAP_HARDENED
constexpr char kPreload[] = "heap/libheap_hardened.so";
#elif defined(HEAP_WITHOUT_CHECKS)
constexpr char kPreload[] = "heap/libheap_unchecked.so";
#else
constexpr char kPreload[] = "heap/libheap.so";
#endif

using Strings = std::vector<std::string>;

std::string ReadFile(const std::string &path) {
  std::ifstream stream(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(stream),
                     std::istreambuf_iterator<char>());
}

std::vector<char *> Pointers(Strings *strings) {
  std::vector<char *> pointers;
  for (std::string &string : *strings) {
    pointers.push_back(string.data());
  }
  pointers.push_back(nullptr);
  return pointers;
}

void Redirect(int fd, const std::string &path, int flags) {
  const int opened = open(path.c_str(), flags, 0600);
  if (opened < 0 || dup2(opened, fd) != fd) {
    _exit(126);
  }
}

struct Result {
  int status;
  std::string output;
  std::string errors;
};

class MallocProgramsTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = testing::TempDir() + "/programsXXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder_ = std::filesystem::canonical(pattern);
    preload_ = "LD_PRELOAD=" + std::filesystem::absolute(kPreload).string();
  }

  void TearDown() override {
    std::filesystem::remove_all(folder_);
  }

  std::string Write(const std::string &name, const std::string &content) const {
    std::ofstream(folder_ + "/" + name) << content;
    return folder_ + "/" + name;
  }

  Result Run(Strings command, Strings environment) const {
    environment.push_back(std::string("PATH=") + getenv("PATH"));
    environment.push_back("LC_ALL=C.UTF-8");
    environment.push_back("HOME=" + folder_);
    const std::string output = folder_ + "/.output";
    const std::string errors = folder_ + "/.errors";
    const pid_t child = fork();
    if (child == 0) {
      Redirect(STDIN_FILENO, "/dev/null", O_RDONLY);
      Redirect(STDOUT_FILENO, output, O_WRONLY | O_CREAT | O_TRUNC);
      Redirect(STDERR_FILENO, errors, O_WRONLY | O_CREAT | O_TRUNC);
      if (chdir(folder_.c_str()) == 0) {
        execvpe(command[0].c_str(), Pointers(&command).data(),
                Pointers(&environment).data());
      }
      _exit(127);
    }
    int status = -1;
    EXPECT_EQ(waitpid(child, &status, 0), child);
    return {status, ReadFile(output), ReadFile(errors)};
  }

  // Runs a program that succeeds, bare and on libheap.so; returns what it
  // printed.
  std::string RunBoth(const Strings &command, Strings environment = {}) const {
    const Result bare = Run(command, environment);
    EXPECT_EQ(bare.status, 0)
        << command[0] << " is missing or fails; third_party/debian/setup.sh\n"
        << bare.errors;
    environment.push_back(preload_);
    const Result preloaded = Run(command, environment);
    EXPECT_EQ(preloaded.status, bare.status);
    EXPECT_TRUE(preloaded.output == bare.output) << preloaded.output;
    EXPECT_EQ(preloaded.errors, bare.errors);
    return preloaded.output;
  }

  std::string folder_;
  std::string preload_;
};

TEST_F(MallocProgramsTest, Bash) {
  const std::string output = RunBoth(
      {"bash", "-c",
       "set -o pipefail; declare -A a; for i in {1..3000}; do a[k$i]=$i$i; "
       "done; s=0; for k in \"${!a[@]}\"; do s=$((s + ${a[$k]})); done; "
       "echo $s; seq 1 1000 | sort -rn | (read first; echo $first; cat | wc "
       "-l); x=$(for i in {1..200}; do echo $(echo $i); done); echo ${#x}; "
       "(exit 3); echo $?; cat <(echo process); exec /bin/echo last"});
  EXPECT_EQ(output.substr(output.size() - 15), "3\nprocess\nlast\n");
}

TEST_F(MallocProgramsTest, Coreutils) {
  RunBoth({"bash", "-ec",
           "seq 1 200000 | awk '{print ($1 * 7919) % 100003, $1}' >numbers; "
           "sort -k1,1n -k2,2n --parallel=2 -S 1M numbers | sha256sum; "
           "sort -R --random-source=numbers numbers | wc -l; "
           "cut -d' ' -f1 numbers | sort | uniq -c | sort -rn | head -n 3; "
           "split -n 7 numbers part; cat part* | cmp - numbers; ls | wc -l; "
           "find . -type f | xargs -n 2 wc -c | sort | tail -n 2; "
           "tr 0-9 a-j <numbers | fold -w 37 | tac | md5sum"});
}

TEST_F(MallocProgramsTest, Sqlite) {
  const std::string output = RunBoth(
      {"sqlite3", "database",
       "create table t(a integer primary key, b text, c blob);"
       "with recursive n(i) as (select 1 union all select i + 1 from n where "
       "i < 20000) insert into t select i, 'row ' || i * 7919 % 20011, "
       "zeroblob(i % 300) from n;"
       "create index u on t(b); delete from t where a % 3 = 0; vacuum;"
       "select count(*), max(b), sum(length(c)) from t where b like '%99%';"
       "select b, count(*) from t group by substr(b, 1, 6) order by 2 desc, 1 "
       "limit 3; pragma integrity_check; drop table t;"});
  EXPECT_NE(output.find("\nok\n"), std::string::npos) << output;
}

TEST_F(MallocProgramsTest, PythonWithThreadsAndChildren) {
  const std::string script = Write("script.py", R"(
import collections, json, multiprocessing, os, re, subprocess, threading
table = {str(i): [i] * 10 for i in range(5000)}
text = json.dumps(table)
results = []
def work(n):
    results.append(sum(len(json.loads(text)) for _ in range(n)))
def square(x):
    return x * x
if __name__ == '__main__':
    threads = [threading.Thread(target=work, args=(3,)) for _ in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    print(len(text), results)
    words = re.findall(r'\d+', text)
    print(collections.Counter(words).most_common(3), len(set(words)))
    data = bytearray()
    for i in range(2000):
        data += bytes([i % 256]) * (i % 1000)
    print(len(data), hash(tuple(data[:100])))
    print(subprocess.run(['echo', 'hello'], capture_output=True).stdout)
    with multiprocessing.Pool(2) as pool:
        print(pool.map(square, range(10)))
    if os.fork() == 0:
        threads = [threading.Thread(target=work, args=(1,)) for _ in range(2)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        os.execvp('echo', ['echo', 'executed', str(len(results))])
    os.wait()
)");
  // With its own allocator of small objects, and with every object a block.
  RunBoth({"/usr/bin/python3", "-u", script});
  RunBoth({"/usr/bin/python3", "-u", script}, {"PYTHONMALLOC=malloc"});
}

// Tests of its own for its containers, parsers, threads and children.
TEST_F(MallocProgramsTest, PythonsOwnTests) {
  const Strings modules = {"test_dict",   "test_list",  "test_json",
                           "test_re",     "test_bytes", "test_deque",
                           "test_struct", "test_zlib",  "test_thread"};
  if (Run({"/usr/bin/python3", "-c", "import test.test_dict"}, {}).status !=
      0) {
    GTEST_SKIP() << "python3's own tests are not installed; on Debian 12 "
                    "third_party/debian/setup.sh installs them";
  }
  Strings command = {"/usr/bin/python3", "-m", "test", "-q"};
  command.insert(command.end(), modules.begin(), modules.end());
  // Their files are named after the process's number, which another sandbox may
  // have as well.
  const Result result =
      Run(command, {preload_, "PYTHONMALLOC=malloc", "TMPDIR=" + folder_});
  EXPECT_EQ(result.status, 0) << result.output << result.errors;
  EXPECT_EQ(result.errors.find("heap: "), std::string::npos) << result.errors;
}

// Debian's redis-tools has the server too, under another name, and does not
// start one at its installation.
TEST_F(MallocProgramsTest, RedisUnderItsBenchmark) {
  if (Run({"grep", "-q", "mallocx", "/usr/bin/redis-check-rdb"}, {}).status ==
      0) {
    GTEST_SKIP() << "this redis takes blocks from jemalloc by mallocx(), which "
                    "no other malloc knows";
  }
  const std::string output = RunBoth(
      {"bash", "-ec",
       "ln -sf /usr/bin/redis-check-rdb redis-server; "
       "./redis-server --port 0 --unixsocket socket --save '' "
       "--maxmemory 20mb --maxmemory-policy allkeys-lru >log & server=$!; "
       "export LD_PRELOAD=; "
       "until redis-cli -s socket ping >/dev/null 2>&1; do "
       "kill -0 $server; done; "
       "for size in 10 5000; do redis-benchmark -s socket -q -P 8 -n 20000 "
       "-r 10000 -d $size -t set,get,lpush,lpop,hset,zadd,mset >/dev/null; "
       "done; redis-cli -s socket memory doctor >/dev/null; "
       "redis-cli -s socket shutdown nosave; wait $server; "
       "grep -c 'bye bye' log; grep heap: log || true; rm -f log socket"});
  EXPECT_EQ(output, "1\n");
}

TEST_F(MallocProgramsTest, Perl) {
  RunBoth({"perl", "-e",
           "my %h; for my $i (1 .. 20000) { $h{\"k$i\"} = [$i, \"v$i\" x ($i % "
           "50)]; } for my $i (1 .. 20000) { delete $h{\"k$i\"} if $i % 3; } "
           "my $s = 0; $s += length $h{$_}[1] for sort keys %h; print "
           "\"$s\\n\"; my $t = join ',', 1 .. 50000; $t =~ s/(\\d+)/<$1>/g; "
           "print length $t, \"\\n\"; open(my $p, '-|', 'echo piped') or die; "
           "print <$p>;"});
}

TEST_F(MallocProgramsTest, Git) {
  RunBoth({"bash", "-ec",
           "rm -rf repo; git init -q -b main repo; cd repo; "
           "git config user.name n; git config user.email e@example.com; "
           "export GIT_AUTHOR_DATE=@1000000000 GIT_COMMITTER_DATE=@1000000000; "
           "for i in $(seq 1 20); do seq $i $((i * 300)) >file$i; git add .; "
           "git commit -q -m commit$i; done; git log --stat; "
           "git -c pack.threads=2 repack -adfq; git fsck --strict; "
           "git diff HEAD~5; git blame file3 | tail -n 1; "
           "git rev-list --objects --all | wc -l"});
}

// A large file: some thousand functions, so that the compiler's own arenas,
// which it maps itself, stand beside ours.
TEST_F(MallocProgramsTest, GccCompilesTheSameObject) {
  std::string source = "#include <map>\n#include <string>\n#include <vector>\n";
  for (int i = 0; i < 400; ++i) {
    const std::string n = std::to_string(i);
    source += "int f" + n + "(const std::vector<int> &v) { int s = " + n +
              "; for (int x : v) s = s * 31 + (x ^ " + n + "); return s; }\n";
  }
  source +=
      "std::map<std::string, std::vector<int>> m;\n"
      "int main() { m[\"a\"] = {1, 2, 3}; return f7(m[\"a\"]) == 0; }\n";
  const std::string path = Write("source.cc", source);
  RunBoth({"bash", "-ec",
           "g++ -O2 -g -c -o object.o " + path +
               " && sha256sum object.o && g++ -o program object.o && "
               "./program && size program"});
}

TEST_F(MallocProgramsTest, Node) {
  const std::string script = Write("script.js", R"(
const { Worker, isMainThread, parentPort } = require('worker_threads');
const zlib = require('zlib');
function work() {
  const buffers = [];
  for (let i = 0; i < 200; i++) {
    buffers.push(zlib.deflateSync(Buffer.alloc(10000 + i * 37, i % 251)));
  }
  return buffers.reduce((s, b) => s + zlib.inflateSync(b).length, 0);
}
if (isMainThread) {
  const table = new Map();
  for (let i = 0; i < 50000; i++) table.set('k' + i, { i, text: 'v' + i });
  console.log(JSON.stringify([...table].slice(0, 3)), work());
  let left = 3;
  for (let i = 0; i < 3; i++) {
    new Worker(__filename).on('message', (sum) => {
      console.log(sum);
      if (--left === 0) console.log('done');
    });
  }
} else {
  parentPort.postMessage(work());
}
)");
  const std::string output = RunBoth({"node", script});
  EXPECT_EQ(output.substr(output.size() - 5), "done\n");
}

TEST_F(MallocProgramsTest, ExitCodesAndSignalsPass) {
  EXPECT_EQ(WEXITSTATUS(Run({"sh", "-c", "exit 41"}, {preload_}).status), 41);
  EXPECT_EQ(WTERMSIG(Run({"sh", "-c", "kill -TERM $$"}, {preload_}).status),
            SIGTERM);
}

}  // namespace
