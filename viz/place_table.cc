// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "viz/place_table.h"

#include "viz/allocation_wrapper.h"

namespace viz {

PlaceTable::PlaceTable(Symbolizer *symbolizer) : symbolizer_(symbolizer) {
  String("");
}

uint32_t PlaceTable::String(std::string string) {
  if (string.size() > kStringBytesMax) {
    string.resize(kStringBytesMax);
    string += "...";
  }
  const auto [entry, is_new] = string_numbers_.insert(
      {std::move(string), static_cast<uint32_t>(strings_.size())});
  if (is_new) {
    strings_.push_back(entry->first);
  }
  return entry->second;
}

uint32_t PlaceTable::ModuleNumber(size_t module) {
  if (module == Symbolizer::kNoModule) {
    return 0;
  }
  const auto [entry, is_new] = module_numbers_.insert(
      {module, static_cast<uint32_t>(modules_.size() + 1)});
  if (is_new) {
    modules_.push_back(module);
  }
  return entry->second;
}

uint32_t PlaceTable::Find(Place place, uint64_t return_address,
                          uint64_t time_ns) {
  if (place != Place::kAddress) {
    const auto [entry, is_new] = special_numbers_.insert(
        {place, static_cast<uint32_t>(entries_.size())});
    if (is_new) {
      entries_.push_back({place, 0, 0, 0, 0, 0, 0, 0});
    }
    return entry->second;
  }
  return AddressNumbers(return_address, time_ns).innermost;
}

uint32_t PlaceTable::FindSite(Place place, uint64_t return_address,
                              uint64_t time_ns) {
  return place == Place::kAddress ? AddressNumbers(return_address, time_ns).site
                                  : Find(place, return_address, time_ns);
}

PlaceTable::Numbers PlaceTable::AddressNumbers(uint64_t return_address,
                                               uint64_t time_ns) {
  const size_t module = symbolizer_->ModuleAt(return_address, time_ns);
  const auto [entry, is_new] =
      address_numbers_.insert({{module, return_address}, {0, 0}});
  if (is_new) {
    entry->second = AddAddress(module, return_address);
  }
  return entry->second;
}

PlaceTable::Numbers PlaceTable::AddAddress(size_t module,
                                           uint64_t return_address) {
  CodePlace code = symbolizer_->Resolve(module, return_address);
  while (code.lines.size() > 1 &&
         IsAllocationWrapper(code.lines.front().function)) {
    code.lines.erase(code.lines.begin());
  }
  const uint64_t bias = module == Symbolizer::kNoModule
                            ? 0
                            : symbolizer_->modules()[module].load_bias;
  const auto first = static_cast<uint32_t>(entries_.size());
  for (size_t i = 0; i < code.lines.size(); ++i) {
    const CodeLine &line = code.lines[i];
    const bool is_last = i + 1 == code.lines.size();
    Entry entry;
    entry.place = Place::kAddress;
    entry.module = ModuleNumber(module);
    entry.offset = return_address - bias;
    entry.start = code.function_start;
    entry.function = String(line.function);
    entry.file = String(line.file);
    entry.line = line.line;
    entry.outer = is_last ? 0 : first + static_cast<uint32_t>(i) + 1 + 1;
    entries_.push_back(entry);
  }
  return {first, first + static_cast<uint32_t>(SiteLine(code))};
}

size_t SiteLine(const CodePlace &code) {
  for (size_t i = 0; i < code.lines.size(); ++i) {
    if (!IsNoSite(code.lines[i].function)) {
      return i;
    }
  }
  return 0;
}

void PlaceTable::Pack(
    const std::function<void(const char *, const Column &)> &add) const {
  Column kind, module, offset, start, function, file, line, outer;
  for (const Entry &entry : entries_) {
    kind.Put(static_cast<uint64_t>(entry.place));
    module.Put(entry.module);
    offset.PutDelta(entry.offset);
    start.PutDelta(entry.start);
    function.PutDelta(entry.function);
    file.PutDelta(entry.file);
    line.PutDelta(entry.line);
    outer.Put(entry.outer);
  }
  add("place.kind", kind);
  add("place.module", module);
  add("place.offset", offset);
  add("place.start", start);
  add("place.function", function);
  add("place.file", file);
  add("place.line", line);
  add("place.outer", outer);
}

}  // namespace viz
