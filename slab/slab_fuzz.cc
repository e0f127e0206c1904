// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Fuzzes a cache against its model. The input:
//   2 bytes  object size, 1 byte log2 of the alignment, 1 byte flags and kind
//            of memory (kernel, source, buffer), then operations:
//   1 byte   what (low 3 bits), how many or which (the rest)
// Properties: slab_check after every operation, objects apart and aligned,
// their contents kept, walk and statistics as the model says, nothing left
// behind.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "slab/slab_testing.h"

namespace {

constexpr size_t kMaxObjects = 3000;

class Input {
 public:
  Input(const uint8_t *data, size_t size) : data_(data), end_(data + size) {
  }
  bool empty() const {
    return data_ == end_;
  }
  unsigned Byte() {
    return empty() ? 0u : *data_++;
  }

 private:
  const uint8_t *data_;
  const uint8_t *end_;
};

void RunOperation(slab_testing::CacheModel *model, unsigned byte) {
  const size_t number = byte >> 3;
  const bool has_room = model->num_live() < kMaxObjects;
  switch (byte & 7) {
    case 0:
      for (size_t i = 0; i <= number && has_room; ++i) {
        model->Alloc();
      }
      break;
    case 1:
      for (size_t i = 0; i <= number; ++i) {
        model->Free(i * number);
      }
      break;
    case 2:
      if (has_room) {
        model->AllocBulk(number * 9);
      }
      break;
    case 3:
      model->FreeBulk(number, number * 7);
      break;
    case 4:
      if (has_room) {
        model->AllocZeroed();
      }
      break;
    case 5:
      model->Free(number);
      break;
    case 6:
      if (has_room) {
        model->Alloc();
      }
      break;
    default:
      model->Reap();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  Input input(data, std::min<size_t>(size, 300));
  slab_options_t options = {};
  options.name = "fuzz";
  options.object_bytes = (input.Byte() | input.Byte() << 8) % 5000 + 1;
  options.align_bytes = size_t{1} << input.Byte() % 13;
  const unsigned kind = input.Byte();
  options.flags = kind % 4 == 1   ? unsigned{SLAB_NO_MAGAZINES}
                  : kind % 4 == 2 ? unsigned{SLAB_DEBUG}
                                  : 0u;
  options.max_objects = kind / 4 % 4 == 0 ? 1 + kind : 0;
  slab_testing::FakeSource source;
  std::vector<unsigned char> buffer;
  if (kind / 16 % 3 == 1) {
    options.source = source.Get();
  } else if (kind / 16 % 3 == 2) {
    buffer.resize(200000);
    options.buffer = buffer.data();
    options.buffer_bytes = buffer.size();
  }
  {
    slab_testing::CacheModel model(options);
    while (!input.empty()) {
      RunOperation(&model, input.Byte());
      model.Check();
    }
  }
  if (source.live_bytes() != 0) {
    std::abort();
  }
  return 0;
}
