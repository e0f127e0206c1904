// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "leakcheck/process_info.h"

#include <dlfcn.h>
#include <errno.h>
#include <gtest/gtest.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <fstream>
#include <string>
#include <vector>

namespace {

std::string TemporaryFile(const std::string &content) {
  std::string path = ::testing::TempDir() + "/process_info_test.txt";
  std::ofstream(path) << content;
  return path;
}

TEST(ProcessInfoTest, ReadStopsAtTheCapacity) {
  std::string path = TemporaryFile("0123456789");
  char bytes[16] = "";
  EXPECT_EQ(process_info_read(path.c_str(), bytes, 4), 4);
  EXPECT_STREQ(bytes, "0123");
  EXPECT_EQ(process_info_read(path.c_str(), bytes, sizeof(bytes)), 10);
  EXPECT_EQ(process_info_read("/nonexistent", bytes, 1), -1);
}

TEST(ProcessInfoTest, ExecutableIsThisProgram) {
  char expected[PATH_MAX];
  ASSERT_NE(realpath("/proc/self/exe", expected), nullptr);
  char path[PATH_MAX];
  process_info_executable(path, sizeof(path));
  EXPECT_STREQ(path, expected);
}

TEST(ProcessInfoTest, ExecutableIsCutAtTheCapacity) {
  char path[PATH_MAX];
  process_info_executable(path, 5);
  EXPECT_EQ(strlen(path), 4u);
  process_info_executable(path, 1);
  EXPECT_STREQ(path, "");
}

TEST(ProcessInfoTest, MappedFileIsTheOneAtTheAddress) {
  Dl_info info;
  ASSERT_NE(dladdr(reinterpret_cast<void *>(&qsort), &info), 0);
  char expected[PATH_MAX];
  ASSERT_NE(realpath(info.dli_fname, expected), nullptr);
  char path[PATH_MAX + 128];
  ASSERT_TRUE(process_info_mapped_file(reinterpret_cast<uintptr_t>(&qsort),
                                       path, sizeof(path)));
  EXPECT_STREQ(path, expected);
}

TEST(ProcessInfoTest, AnonymousMemoryHasNoFile) {
  void *memory =
      mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  char path[PATH_MAX + 128];
  EXPECT_FALSE(process_info_mapped_file(reinterpret_cast<uintptr_t>(memory),
                                        path, sizeof(path)));
  EXPECT_FALSE(process_info_mapped_file(0, path, sizeof(path)));
  munmap(memory, 4096);
}

TEST(ProcessInfoTest, MappedFileWithABlankInItsNameIsWhole) {
  std::string path = ::testing::TempDir() + "/a name with blanks";
  std::ofstream(path) << std::string(4096, 'x');
  FILE *file = fopen(path.c_str(), "r");
  ASSERT_NE(file, nullptr);
  void *memory = mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE, fileno(file), 0);
  ASSERT_NE(memory, MAP_FAILED);
  fclose(file);
  char found[PATH_MAX + 128];
  ASSERT_TRUE(process_info_mapped_file(reinterpret_cast<uintptr_t>(memory),
                                       found, sizeof(found)));
  char expected[PATH_MAX];
  ASSERT_NE(realpath(path.c_str(), expected), nullptr);
  EXPECT_STREQ(found, expected);
  munmap(memory, 4096);
}

// What a child that was started with `environment` finds under a prefix.
std::vector<std::string> EnvironmentOfChild(
    const std::vector<std::string> &environment) {
  int fds[2];
  EXPECT_EQ(pipe(fds), 0);
  pid_t pid = fork();
  EXPECT_GE(pid, 0);
  if (pid == 0) {
    dup2(fds[1], STDOUT_FILENO);
    std::vector<char *> pointers;
    for (const std::string &entry : environment) {
      pointers.push_back(const_cast<char *>(entry.c_str()));
    }
    pointers.push_back(nullptr);
    char name[] = "child";
    char filter[] = "--gtest_filter=-*";
    char *arguments[] = {name, filter, nullptr};
    pointers.insert(pointers.begin(), const_cast<char *>("PRINT_VARIABLES=1"));
    execve("/proc/self/exe", arguments, pointers.data());
    _exit(1);
  }
  close(fds[1]);
  std::vector<std::string> lines;
  FILE *stream = fdopen(fds[0], "r");
  std::vector<char> line(10000);
  while (fgets(line.data(), static_cast<int>(line.size()), stream) != nullptr) {
    if (strncmp(line.data(), "VARIABLE ", 9) == 0) {
      lines.emplace_back(line.data() + 9);
      lines.back().pop_back();
    }
  }
  fclose(stream);
  int status;
  EXPECT_EQ(waitpid(pid, &status, 0), pid);
  return lines;
}

// Runs in the child, before main, as the recorder may.
__attribute__((constructor)) void PrintVariables() {
  if (getenv("PRINT_VARIABLES") == nullptr) {
    return;
  }
  process_info_environment(
      "PREFIX_",
      [](void *, const char *entry) { printf("VARIABLE %s\n", entry); },
      nullptr);
}

TEST(ProcessInfoTest, EnvironmentIsFilteredByPrefix) {
  EXPECT_EQ(
      EnvironmentOfChild({"A=1", "PREFIX_B=2", "XPREFIX_C=3", "PREFIX_="}),
      (std::vector<std::string>{"PREFIX_B=2", "PREFIX_="}));
}

TEST(ProcessInfoTest, LongVariablesAreCutAndDoNotHideOthers) {
  const size_t max = PROCESS_INFO_VARIABLE_BYTES_MAX;
  std::string fits = "PREFIX_A=";
  fits.resize(max, 'x');
  std::string too_long = "PREFIX_C=" + std::string(50000, 'z');
  EXPECT_EQ(EnvironmentOfChild({std::string(100000, 'y'), fits, fits + "x",
                                too_long, "PREFIX_B=2"}),
            (std::vector<std::string>{fits, fits, too_long.substr(0, max),
                                      "PREFIX_B=2"}));
}

TEST(ProcessInfoTest, ResidentBytesGrowWithUse) {
  uint64_t before = process_info_resident_bytes();
  const size_t num_bytes = 32 << 20;
  void *memory = mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  memset(memory, 1, num_bytes);
  EXPECT_GE(process_info_resident_bytes(), before + num_bytes / 2);
  munmap(memory, num_bytes);
}

TEST(ProcessInfoTest, StartIsInTheRecentPast) {
  uint64_t start_ns = process_info_start_unix_ns();
  timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  uint64_t now_ns = static_cast<uint64_t>(now.tv_sec) * 1000000000 +
                    static_cast<uint64_t>(now.tv_nsec);
  EXPECT_LE(start_ns, now_ns + 50000000);
  EXPECT_GT(start_ns + 3600 * UINT64_C(1000000000), now_ns);
}

}  // namespace
