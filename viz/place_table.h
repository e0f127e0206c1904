// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The places in code that a page names, each once: a number for every address,
// and its function, file, line and module as numbers of strings. Where
// functions were inlined, an address is a chain of places, the innermost first.

#ifndef MY_ALLOC_VIZ_PLACE_TABLE_H_
#define MY_ALLOC_VIZ_PLACE_TABLE_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "viz/column.h"
#include "viz/stack_slots.h"
#include "viz/symbolizer.h"

namespace viz {

class PlaceTable {
 public:
  // `symbolizer` must outlive this.
  explicit PlaceTable(Symbolizer *symbolizer);

  // Returns the number of a place; of an address, as it was at that time.
  uint32_t Find(Place place, uint64_t return_address, uint64_t time_ns);

  // The same for an allocation site: of what was inlined at the address, the
  // innermost that is one.
  uint32_t FindSite(Place place, uint64_t return_address, uint64_t time_ns);

  // String 0 is empty. Longer ones than kStringBytesMax are cut.
  static constexpr size_t kStringBytesMax = 1000;
  const std::vector<std::string> &strings() const {
    return strings_;
  }
  // Which modules of the symbolizer places are in, in order of their numbers.
  const std::vector<size_t> &modules() const {
    return modules_;
  }

  // Gives the columns of the table.
  void Pack(const std::function<void(const char *, const Column &)> &add) const;

 private:
  struct Entry {
    Place place;
    uint32_t module;    // Number + 1; 0: none.
    uint64_t offset;    // Of the address in the module's file.
    uint64_t start;     // Of its function in the file; 0: unknown.
    uint32_t function;  // Number of a string.
    uint32_t file;      // Number of a string.
    uint32_t line;
    uint32_t outer;  // Number + 1 of what this was inlined into; 0: none.
  };

  struct Numbers {
    uint32_t innermost;
    uint32_t site;
  };

  uint32_t String(std::string string);
  uint32_t ModuleNumber(size_t module);
  Numbers AddressNumbers(uint64_t return_address, uint64_t time_ns);
  Numbers AddAddress(size_t module, uint64_t return_address);

  Symbolizer *symbolizer_;
  std::vector<Entry> entries_;
  std::vector<std::string> strings_;
  std::unordered_map<std::string, uint32_t> string_numbers_;
  std::vector<size_t> modules_;
  std::map<size_t, uint32_t> module_numbers_;
  std::map<std::pair<size_t, uint64_t>, Numbers> address_numbers_;
  std::map<Place, uint32_t> special_numbers_;
};

// Which of the lines at an address is an allocation site: the innermost that
// is not IsNoSite(), or else the innermost.
size_t SiteLine(const CodePlace &code);

}  // namespace viz

#endif  // MY_ALLOC_VIZ_PLACE_TABLE_H_
