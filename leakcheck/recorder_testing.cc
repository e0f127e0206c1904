// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "leakcheck/recorder_testing.h"

#include <elf.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <link.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

namespace leakcheck {
namespace {

std::string ReadFile(const std::string &path) {
  std::ifstream stream(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(stream),
                     std::istreambuf_iterator<char>());
}

[[noreturn]] void Execute(const std::string &folder,
                          const std::vector<std::string> &arguments,
                          const std::vector<std::string> &environment) {
  std::vector<char *> argv;
  for (const std::string &argument : arguments) {
    argv.push_back(const_cast<char *>(argument.c_str()));
  }
  argv.push_back(nullptr);
  std::vector<char *> envp;
  for (const std::string &entry : environment) {
    envp.push_back(const_cast<char *>(entry.c_str()));
  }
  envp.push_back(nullptr);
  // Outside of what the test looks at as logs.
  int out =
      open((folder + "/out.txt").c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  int err =
      open((folder + "/err.txt").c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  int in = open("/dev/null", O_RDONLY);
  if (out < 0 || err < 0 || in < 0 || chdir(folder.c_str()) != 0) {
    _exit(126);
  }
  dup2(in, STDIN_FILENO);
  dup2(out, STDOUT_FILENO);
  dup2(err, STDERR_FILENO);
  close(in);
  close(out);
  close(err);
  execvpe(argv[0], argv.data(), envp.data());
  _exit(127);
}

RunResult RunWith(const std::string &folder,
                  const std::vector<std::string> &arguments,
                  const std::vector<std::string> &environment) {
  RunResult result;
  result.pid = fork();
  EXPECT_GE(result.pid, 0);
  if (result.pid == 0) {
    Execute(folder, arguments, environment);
  }
  int status = 0;
  EXPECT_EQ(waitpid(result.pid, &status, 0), result.pid);
  result.exit_code =
      WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  result.output = ReadFile(folder + "/out.txt");
  result.errors = ReadFile(folder + "/err.txt");
  return result;
}

}  // namespace

std::string RunfilePath(const std::string &path) {
  const char *root = getenv("TEST_SRCDIR");
  const char *workspace = getenv("TEST_WORKSPACE");
  if (root == nullptr || workspace == nullptr) {
    return std::filesystem::absolute(path);
  }
  return std::string(root) + "/" + workspace + "/" + path;
}

RecordedRun::RecordedRun() {
  std::string pattern = ::testing::TempDir() + "/recordedXXXXXX";
  EXPECT_NE(mkdtemp(pattern.data()), nullptr);
  folder_ = std::filesystem::canonical(pattern);
}

RecordedRun::~RecordedRun() {
  std::error_code ignored;
  std::filesystem::remove_all(folder_, ignored);
}

RunResult RecordedRun::Run(const std::vector<std::string> &arguments,
                           const std::vector<std::string> &environment) const {
  std::vector<std::string> all = {
      "LD_PRELOAD=" + RunfilePath("leakcheck/libleakcheck.so"),
      "LC_ALL=C.UTF-8"};
  all.push_back(std::string("PATH=") + getenv("PATH"));
  all.insert(all.end(), environment.begin(), environment.end());
  if (std::none_of(all.begin(), all.end(), [](const std::string &entry) {
        return entry.rfind("LEAKCHECK_LOG=", 0) == 0;
      })) {
    all.push_back("LEAKCHECK_LOG=" + folder_ + "/leakcheck.%p.heaplog");
  }
  return RunWith(folder_, arguments, all);
}

RunResult RecordedRun::RunBare(
    const std::vector<std::string> &arguments,
    const std::vector<std::string> &environment) const {
  std::vector<std::string> all = {"LC_ALL=C.UTF-8"};
  all.push_back(std::string("PATH=") + getenv("PATH"));
  all.insert(all.end(), environment.begin(), environment.end());
  return RunWith(folder_, arguments, all);
}

std::vector<std::string> RecordedRun::Logs() const {
  std::vector<std::string> names;
  for (const auto &entry : std::filesystem::directory_iterator(folder_)) {
    if (entry.path().extension() == ".heaplog") {
      names.push_back(entry.path().filename());
    }
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::vector<std::string> RecordedRun::LogsOf(int pid) const {
  const std::string part = "." + std::to_string(pid) + ".";
  std::vector<std::string> names = Logs();
  names.erase(std::remove_if(names.begin(), names.end(),
                             [&part](const std::string &name) {
                               return name.find(part) == std::string::npos;
                             }),
              names.end());
  return names;
}

std::string RecordedRun::Path(const std::string &name) const {
  return folder_ + "/" + name;
}

std::string FunctionAt(const std::string &elf_path, uint64_t address) {
  const std::string file = ReadFile(elf_path);
  ElfW(Ehdr) header;
  if (file.size() < sizeof(header)) {
    return "";
  }
  memcpy(&header, file.data(), sizeof(header));
  std::vector<ElfW(Shdr)> sections(header.e_shnum);
  if (header.e_shoff + sections.size() * sizeof(ElfW(Shdr)) > file.size()) {
    return "";
  }
  memcpy(sections.data(), file.data() + header.e_shoff,
         sections.size() * sizeof(ElfW(Shdr)));
  for (const ElfW(Shdr) & section : sections) {
    if (section.sh_type != SHT_SYMTAB) {
      continue;
    }
    const char *names = file.data() + sections[section.sh_link].sh_offset;
    for (size_t at = 0; at < section.sh_size; at += sizeof(ElfW(Sym))) {
      ElfW(Sym) symbol;
      memcpy(&symbol, file.data() + section.sh_offset + at, sizeof(symbol));
      if (ELF64_ST_TYPE(symbol.st_info) == STT_FUNC &&
          address >= symbol.st_value &&
          address < symbol.st_value + symbol.st_size) {
        return names + symbol.st_name;
      }
    }
  }
  return "";
}

std::vector<std::string> StackFunctions(const LogReplay &replay,
                                        uint32_t stack_id) {
  std::vector<std::string> functions;
  for (uint64_t frame : replay.Stack(stack_id)) {
    std::string function;
    for (const heaplog_module_t &module : replay.Modules()) {
      if (frame > module.start_address && frame <= module.end_address) {
        // One less: the call, not what comes after it.
        function = FunctionAt(module.path, frame - 1 - module.load_bias);
      }
    }
    functions.push_back(function.empty() ? "?" : function);
  }
  return functions;
}

}  // namespace leakcheck
