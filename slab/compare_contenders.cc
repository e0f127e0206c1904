// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "slab/compare_contenders.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstring>

namespace compare {

slab_cache_t *MakeCache(size_t object_bytes) {
  slab_options_t options = {};
  options.name = "compare";
  options.object_bytes = object_bytes;
  slab_cache_t *cache = slab_cache_create(&options);
  if (cache == nullptr) {
    std::perror("slab_cache_create");
    std::exit(1);
  }
  return cache;
}

namespace {

template <typename Function>
void Find(void *library, const char *name, Function *out_function) {
  void *symbol = library == nullptr ? nullptr : dlsym(library, name);
  std::memcpy(out_function, &symbol, sizeof(symbol));
}

}  // namespace

void Load() {
  void *jemalloc = dlopen("libjemalloc.so.2", RTLD_NOW | RTLD_LOCAL);
  Find(jemalloc, "malloc", &loaded.je_malloc);
  Find(jemalloc, "free", &loaded.je_free);
  void *mimalloc = dlopen("libmimalloc.so.2", RTLD_NOW | RTLD_LOCAL);
  Find(mimalloc, "mi_heap_malloc_small", &loaded.mi_heap_malloc_small);
  Find(mimalloc, "mi_heap_get_default", &loaded.mi_heap_get_default);
  Find(mimalloc, "mi_free", &loaded.mi_free);
  void *glib = dlopen("libglib-2.0.so.0", RTLD_NOW | RTLD_LOCAL);
  Find(glib, "g_slice_alloc", &loaded.g_slice_alloc);
  Find(glib, "g_slice_free1", &loaded.g_slice_free1);
}

void AddPeer(const std::string &name_and_file) {
  static size_t num_peers = 0;
  const size_t equals = name_and_file.find('=');
  if (equals == std::string::npos || num_peers == kPeersMax) {
    std::fprintf(stderr, "--peer NAME=FILE, up to %zu times\n", kPeersMax);
    std::exit(2);
  }
  PeerFunctions &peer = peers[num_peers++];
  peer.name = name_and_file.substr(0, equals);
  void *library =
      dlopen(name_and_file.c_str() + equals + 1, RTLD_NOW | RTLD_LOCAL);
  Find(library, "malloc", &peer.malloc);
  Find(library, "free", &peer.free);
  if (peer.malloc == nullptr || peer.free == nullptr) {
    const char *error = dlerror();
    std::fprintf(stderr, "%s: %s\n", name_and_file.c_str(),
                 error == nullptr ? "no malloc" : error);
    std::exit(1);
  }
}

}  // namespace compare
