// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// `main` for a fuzz target that is built without libFuzzer: gives each file
// named on the command line, and each file below a folder named there, to the
// target once. Running no file at all is a failure.

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size_bytes);

namespace {

bool Replay(const std::filesystem::path &path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  if (!file) {
    std::fprintf(stderr, "%s: cannot be read\n", path.c_str());
    return false;
  }
  std::fprintf(stderr, "%s: %zu bytes\n", path.c_str(), bytes.size());
  LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t *>(bytes.data()),
                         bytes.size());
  return true;
}

std::vector<std::filesystem::path> FilesOf(const char *argument) {
  if (!std::filesystem::is_directory(argument)) {
    return {argument};
  }
  std::vector<std::filesystem::path> files;
  for (const auto &entry :
       std::filesystem::recursive_directory_iterator(argument)) {
    if (entry.is_regular_file()) {
      files.push_back(entry.path());
    }
  }
  return files;
}

}  // namespace

int main(int argc, char **argv) {
  size_t num_files = 0;
  for (int i = 1; i < argc; ++i) {
    for (const std::filesystem::path &path : FilesOf(argv[i])) {
      if (!Replay(path)) {
        return 1;
      }
      ++num_files;
    }
  }
  std::fprintf(stderr, "%zu files replayed\n", num_files);
  return num_files > 0 ? 0 : 1;
}
