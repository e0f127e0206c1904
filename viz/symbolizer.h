// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Names for code addresses of a log: function, file and line, from the ELF
// files that the log says were loaded, as they are on this machine now. A file
// whose build id is another one than the log's was replaced since and is not
// used. What a stripped file does not name is told apart by where its functions
// start, which the unwind tables say.

#ifndef MY_ALLOC_VIZ_SYMBOLIZER_H_
#define MY_ALLOC_VIZ_SYMBOLIZER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "viz/event_source.h"

namespace viz {

// A position in source code. An address has several when functions were
// inlined there.
struct CodeLine {
  std::string function;  // Demangled; "" when unknown.
  std::string file;      // "" when unknown.
  uint32_t line = 0;
};

struct CodePlace {
  std::vector<CodeLine> lines;  // Innermost first; at least one.
  uint64_t function_start = 0;  // In the file's addresses; 0: unknown.
};

// What became of a module's file.
enum class ModuleState {
  kUnused,      // No address of it was asked for.
  kFound,       // Names come from it.
  kUnreadable,  // Not there, not a regular file, or not ELF.
  kChanged,     // Another build than the one that ran.
};

class Symbolizer {
 public:
  static constexpr size_t kNoModule = SIZE_MAX;

  explicit Symbolizer(std::vector<Module> modules);
  ~Symbolizer();
  Symbolizer(const Symbolizer &) = delete;
  Symbolizer &operator=(const Symbolizer &) = delete;

  // Returns the index of the module that a return address belonged to at that
  // time, or else at another time, or kNoModule.
  size_t ModuleAt(uint64_t return_address, uint64_t time_ns) const;

  // `module` is what ModuleAt() returned, kNoModule included.
  CodePlace Resolve(size_t module, uint64_t return_address);

  const std::vector<Module> &modules() const {
    return modules_;
  }
  ModuleState state(size_t module) const;

 private:
  class File;

  std::vector<Module> modules_;
  std::vector<std::unique_ptr<File>> files_;  // By module; null: not opened.
};

}  // namespace viz

#endif  // MY_ALLOC_VIZ_SYMBOLIZER_H_
