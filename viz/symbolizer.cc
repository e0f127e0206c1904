// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Each module gets a libdwfl session of its own, loaded at address 0, so that
// addresses are the file's and modules that shared a range one after the other
// cannot clash. Return addresses point behind the call: names are looked up one
// byte before.
//
// Paths come from the log and may name anything: only regular files are read,
// and opening one never blocks.

#include "viz/symbolizer.h"

#include <elfutils/libdwfl.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "viz/demangle.h"
#include "viz/inlined_functions.h"
#include "viz/symbol_table.h"
#include "viz/unwind_index.h"

namespace viz {
namespace {

// Far more than a process has; a log may claim any number.
constexpr size_t kModulesMax = 4096;

// Returns a descriptor of a regular file, or -1.
int OpenRegular(const std::string &path) {
  if (path.empty() || path[0] != '/') {
    return -1;
  }
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  struct stat info;
  if (fd >= 0 && (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode))) {
    close(fd);
    return -1;
  }
  return fd;
}

}  // namespace

class Symbolizer::File {
 public:
  explicit File(const Module &module) {
    static char *no_path = nullptr;
    static const Dwfl_Callbacks callbacks = {
        dwfl_build_id_find_elf, dwfl_standard_find_debuginfo,
        dwfl_offline_section_address, &no_path};
    const int fd = OpenRegular(module.path);
    if (fd < 0) {
      return;
    }
    dwfl_ = dwfl_begin(&callbacks);
    if (dwfl_ != nullptr) {
      dwfl_report_begin(dwfl_);
      module_ = dwfl_report_elf(dwfl_, module.path.c_str(), module.path.c_str(),
                                fd, 0, true);
      dwfl_report_end(dwfl_, nullptr, nullptr);
    }
    if (module_ == nullptr) {
      close(fd);  // Else it is the session's.
      return;
    }
    state_ = HasBuildId(module.build_id) ? ModuleState::kFound
                                         : ModuleState::kChanged;
    GElf_Addr bias;
    if (Elf *elf = dwfl_module_getelf(module_, &bias)) {
      unwind_index_ = UnwindIndex(elf);
    }
    if (state_ == ModuleState::kFound) {
      symbols_ = SymbolTable(module_);
    }
  }

  ~File() {
    if (dwfl_ != nullptr) {
      dwfl_end(dwfl_);
    }
  }

  File(const File &) = delete;
  File &operator=(const File &) = delete;

  ModuleState state() const {
    return state_;
  }

  // `address` is the file's.
  CodePlace Resolve(uint64_t address) {
    CodePlace place;
    CodeLine line;
    const SymbolTable::Symbol *symbol = symbols_.Find(address);
    if (symbol != nullptr) {
      line.function = Demangle(symbol->name);
      place.function_start = symbol->start;
    } else {
      place.function_start = unwind_index_.FunctionStart(address);
    }
    if (Dwfl_Line *source = dwfl_module_getsrc(module_, address)) {
      int number = 0;
      const char *file =
          dwfl_lineinfo(source, nullptr, &number, nullptr, nullptr, nullptr);
      line.file = file == nullptr ? "" : file;
      line.line = static_cast<uint32_t>(std::max(number, 0));
    }
    place.lines.push_back(line);
    inlined_.Expand(module_, address, &place.lines);
    return place;
  }

 private:
  bool HasBuildId(const std::string &wanted) const {
    const unsigned char *bits = nullptr;
    GElf_Addr address;
    const int length = dwfl_module_build_id(module_, &bits, &address);
    if (wanted.empty() || length <= 0) {
      return wanted.empty();
    }
    return wanted == std::string(reinterpret_cast<const char *>(bits),
                                 static_cast<size_t>(length));
  }

  Dwfl *dwfl_ = nullptr;
  Dwfl_Module *module_ = nullptr;
  ModuleState state_ = ModuleState::kUnreadable;
  SymbolTable symbols_;
  UnwindIndex unwind_index_;
  InlinedFunctions inlined_;
};

Symbolizer::Symbolizer(std::vector<Module> modules)
    : modules_(std::move(modules)), files_(modules_.size()) {
}

Symbolizer::~Symbolizer() = default;

size_t Symbolizer::ModuleAt(uint64_t return_address, uint64_t time_ns) const {
  const uint64_t address = return_address - 1;
  size_t found = kNoModule;
  for (size_t i = 0; i < std::min(modules_.size(), kModulesMax); ++i) {
    const Module &module = modules_[i];
    if (address < module.start_address || address >= module.end_address) {
      continue;
    }
    found = i;
    if (module.load_time_ns <= time_ns && time_ns <= module.unload_time_ns) {
      break;
    }
  }
  return found;
}

CodePlace Symbolizer::Resolve(size_t module, uint64_t return_address) {
  CodePlace place;
  if (module < modules_.size()) {
    if (files_[module] == nullptr) {
      files_[module] = std::make_unique<File>(modules_[module]);
    }
    if (files_[module]->state() == ModuleState::kFound) {
      return files_[module]->Resolve(return_address - 1 -
                                     modules_[module].load_bias);
    }
  }
  place.lines.emplace_back();
  return place;
}

ModuleState Symbolizer::state(size_t module) const {
  return files_[module] == nullptr ? ModuleState::kUnused
                                   : files_[module]->state();
}

}  // namespace viz
