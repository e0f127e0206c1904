// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "viz/column.h"

#include <zlib.h>

#include <cstdlib>

namespace viz {

std::string Deflate(absl::string_view bytes) {
  uLongf size = compressBound(bytes.size());
  std::string out(size, '\0');
  if (compress2(reinterpret_cast<Bytef *>(&out[0]), &size,
                reinterpret_cast<const Bytef *>(bytes.data()), bytes.size(),
                Z_DEFAULT_COMPRESSION) != Z_OK) {
    abort();  // Only for want of memory.
  }
  out.resize(size);
  return out;
}

}  // namespace viz
