// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What the tests of channels share: tests of each kind, ports that close
// themselves, and messages that show whether they are whole.

#ifndef MY_ALLOC_SHMIPC_CHANNEL_TESTING_H_
#define MY_ALLOC_SHMIPC_CHANNEL_TESTING_H_

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "gtest/gtest.h"
#include "shmipc/channel.h"
#include "shmipc/shmipc_testing.h"

namespace channel_testing {

constexpr shmipc_channel_kind_t kKinds[] = {SHMIPC_SPSC, SHMIPC_MPMC};

inline const char *KindName(shmipc_channel_kind_t kind) {
  return kind == SHMIPC_SPSC ? "spsc" : "mpmc";
}

inline std::string ParamName(
    const testing::TestParamInfo<shmipc_channel_kind_t> &info) {
  return KindName(info.param);
}

// Makes channels of the kind in a region of its own.
class KindTest : public testing::TestWithParam<shmipc_channel_kind_t> {
 protected:
  void *Create(size_t message_bytes, size_t capacity, bool is_fixed = false,
               const char *name = "channel") {
    shmipc_channel_options_t options = {};
    options.kind = GetParam();
    options.message_bytes = message_bytes;
    options.capacity_messages = capacity;
    options.is_fixed = is_fixed;
    shmipc_ref_t ref;
    EXPECT_EQ(shmipc_channel_create(region_, name, &options, &ref), 0);
    return shmipc_ref_get(region_, ref, 1);
  }
  bool IsSpsc() const {
    return GetParam() == SHMIPC_SPSC;
  }

  shmipc_testing::Watchdog watchdog_{120};
  shmipc_testing::TestRegion own_{SHMIPC_MEMFD, 4096, [](auto *o) {
                                    o->heap_bytes = 8 << 20;
                                  }};
  shmipc_region_t *region_ = own_.region();
};

// `len` bytes that no other number has.
inline std::string Fill(size_t len, uint64_t number) {
  std::string text(len, '\0');
  uint64_t state = number * 0x9e3779b97f4a7c15u + len;
  for (char &byte : text) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    byte = static_cast<char>(state >> 56);
  }
  return text;
}

inline bool IsFilled(const void *data, size_t got, size_t len,
                     uint64_t number) {
  return got == len && memcmp(data, Fill(len, number).data(), len) == 0;
}

class Port {
 public:
  Port(shmipc_region_t *region, void *channel, shmipc_role_t role)
      : region_(region), channel_(channel), role_(role) {
    Open();
  }
  ~Port() {
    Close();
  }
  Port(const Port &) = delete;
  Port &operator=(const Port &) = delete;

  shmipc_port_t *get() const {
    return port_;
  }
  void Close() {
    shmipc_port_close(port_);
    port_ = nullptr;
  }
  void Reopen() {
    Close();
    Open();
  }
  int Send(const std::string &text, int64_t timeout_ns = 0) {
    return shmipc_port_send(port_, text.data(), text.size(), timeout_ns);
  }
  // The message, or the name of the status.
  std::string Receive(int64_t timeout_ns = 0) {
    static char buffer[1 << 17];
    size_t len = 0;
    int status =
        shmipc_port_receive(port_, buffer, sizeof(buffer), &len, timeout_ns);
    return status == 0 ? std::string(buffer, len) : strerrorname_np(-status);
  }

 private:
  void Open() {
    int status = shmipc_port_open(region_, channel_, role_, &port_);
    if (status != 0) {
      fprintf(stderr, "open of a port: %s\n", shmipc_strerror(status));
      abort();
    }
  }

  shmipc_region_t *region_;
  void *channel_;
  shmipc_role_t role_;
  shmipc_port_t *port_ = nullptr;
};

}  // namespace channel_testing

#endif  // MY_ALLOC_SHMIPC_CHANNEL_TESTING_H_
