// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A ref counts from the first byte of the region, where nothing of the caller's
// is; so 0 is free to be null.

#include "shmipc/ref.h"

#include "shmipc/region_internal.h"

shmipc_ref_t shmipc_ref_of(const shmipc_region_t *region, const void *pointer) {
  shmipc_ref_t none = {.offset = 0};
  uint64_t offset = (uint64_t)((uintptr_t)pointer - (uintptr_t)region->base);
  if (offset < region->data_offset || offset >= shmipc_mapped_bytes(region)) {
    return none;
  }
  shmipc_ref_t ref = {.offset = offset};
  return ref;
}

void *shmipc_ref_get(shmipc_region_t *region, shmipc_ref_t ref, size_t len) {
  if (ref.offset < region->data_offset) {
    return NULL;
  }
  return shmipc_region_at(region, ref.offset - region->data_offset, len);
}
