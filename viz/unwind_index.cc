// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The table (Linux Standard Base, "The .eh_frame_hdr section"):
//
//   u8 version = 1, u8 encodings of: pointer to .eh_frame, count, table
//   the pointer (4 bytes: pc-relative), the count (4 bytes)
//   count * { s32 start of the function, s32 its entry in .eh_frame }
//
// where the values of the table are relative to the section's own address. All
// linkers write these encodings; others are not read.

#include "viz/unwind_index.h"

#include <algorithm>
#include <cstring>

namespace viz {
namespace {

constexpr unsigned char kUnsigned4 = 0x03;
constexpr unsigned char kSigned4RelativeToSection = 0x3b;
constexpr unsigned char kSigned4RelativeToHere = 0x1b;
constexpr size_t kHeaderBytes = 12;
constexpr size_t kEntryBytes = 8;

}  // namespace

UnwindIndex::UnwindIndex(Elf *elf) {
  size_t count = 0;
  if (elf_getphdrnum(elf, &count) != 0) {
    return;
  }
  for (size_t i = 0; i < count; ++i) {
    GElf_Phdr header;
    if (gelf_getphdr(elf, static_cast<int>(i), &header) == nullptr) {
      continue;
    }
    if (header.p_type == PT_LOAD && (header.p_flags & PF_X) != 0) {
      text_end_ = std::max(text_end_, header.p_vaddr + header.p_memsz);
    }
    if (header.p_type == PT_GNU_EH_FRAME) {
      ReadTable(elf, header);
    }
  }
}

void UnwindIndex::ReadTable(Elf *elf, const GElf_Phdr &header) {
  const Elf_Data *data = elf_getdata_rawchunk(
      elf, static_cast<int64_t>(header.p_offset), header.p_filesz, ELF_T_BYTE);
  if (data == nullptr || data->d_size < kHeaderBytes) {
    return;
  }
  const auto *bytes = static_cast<const unsigned char *>(data->d_buf);
  if (bytes[0] != 1 || bytes[1] != kSigned4RelativeToHere ||
      bytes[2] != kUnsigned4 || bytes[3] != kSigned4RelativeToSection) {
    return;
  }
  uint32_t count;
  memcpy(&count, bytes + 8, sizeof(count));
  count = static_cast<uint32_t>(
      std::min<size_t>(count, (data->d_size - kHeaderBytes) / kEntryBytes));
  for (size_t i = 0; i < count; ++i) {
    int32_t start;
    memcpy(&start, bytes + kHeaderBytes + i * kEntryBytes, sizeof(start));
    starts_.push_back(header.p_vaddr + static_cast<uint64_t>(int64_t{start}));
  }
  std::sort(starts_.begin(), starts_.end());
}

uint64_t UnwindIndex::FunctionStart(uint64_t address) const {
  const auto after = std::upper_bound(starts_.begin(), starts_.end(), address);
  if (after == starts_.begin() || address >= text_end_) {
    return 0;
  }
  return *(after - 1);
}

}  // namespace viz
