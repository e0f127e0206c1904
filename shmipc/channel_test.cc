// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Channels: sizes, arguments, messages of every length and around every corner
// of the ring, random operations against a model, and counters that wrap
// around. What ends them is in channel_end_test.

#include "shmipc/channel.h"

#include <cerrno>
#include <cstring>
#include <deque>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "shmipc/block.h"
#include "shmipc/channel_internal.h"
#include "shmipc/channel_testing.h"
#include "shmipc/root.h"
#include "shmipc/shmipc_testing.h"

namespace {

using channel_testing::Fill;
using channel_testing::IsFilled;
using channel_testing::kKinds;
using channel_testing::Port;
using shmipc_testing::Problems;
using shmipc_testing::Process;
using shmipc_testing::Seed;

class ChannelTest : public channel_testing::KindTest {};

INSTANTIATE_TEST_SUITE_P(All, ChannelTest, testing::ValuesIn(kKinds),
                         channel_testing::ParamName);

// -- Making them.

TEST_P(ChannelTest, BytesIsZeroForWhatCannotBe) {
  shmipc_channel_options_t good = {};
  good.kind = GetParam();
  good.message_bytes = 100;
  EXPECT_GE(shmipc_channel_bytes(&good), 64u * 100);
  EXPECT_EQ(shmipc_channel_bytes(&good) % 64, 0u);
  shmipc_channel_options_t bad = good;
  bad.kind = static_cast<shmipc_channel_kind_t>(0);
  EXPECT_EQ(shmipc_channel_bytes(&bad), 0u);
  bad = good;
  bad.message_bytes = 0;
  EXPECT_EQ(shmipc_channel_bytes(&bad), 0u);
  bad.message_bytes = SHMIPC_MESSAGE_BYTES_MAX + 1;
  EXPECT_EQ(shmipc_channel_bytes(&bad), 0u);
  bad = good;
  bad.capacity_messages = SHMIPC_MESSAGES_MAX + 1;
  EXPECT_EQ(shmipc_channel_bytes(&bad), 0u);
  bad = good;
  bad.max_ports = SHMIPC_CHANNEL_PORTS_MAX + 1;
  EXPECT_EQ(shmipc_channel_bytes(&bad), 0u);
}

TEST_P(ChannelTest, InitNeedsRoomAndAlignment) {
  shmipc_channel_options_t options = {};
  options.kind = GetParam();
  options.message_bytes = 8;
  options.capacity_messages = 2;
  options.max_ports = 2;
  size_t bytes = shmipc_channel_bytes(&options);
  auto *memory = own_.data<char>();
  ASSERT_LE(bytes + 64, 4096u);
  EXPECT_EQ(shmipc_channel_init(memory + 8, bytes, &options), -EINVAL);
  EXPECT_EQ(shmipc_channel_init(memory, bytes - 1, &options), -ENOSPC);
  options.message_bytes = 0;
  EXPECT_EQ(shmipc_channel_init(memory, bytes, &options), -EINVAL);
  options.message_bytes = 8;
  // In the region's data; nothing behind it is written.
  memory[bytes] = 77;
  memset(memory, 0xff, bytes);
  EXPECT_EQ(shmipc_channel_init(memory, bytes, &options), 0);
  EXPECT_EQ(memory[bytes], 77);
  Port sender(region_, memory, SHMIPC_SENDER);
  Port receiver(region_, memory, SHMIPC_RECEIVER);
  EXPECT_EQ(sender.Send("12345678"), 0);
  EXPECT_EQ(receiver.Receive(), "12345678");
  EXPECT_EQ(memory[bytes], 77);
}

TEST_P(ChannelTest, OneOfManyCreates) {
  shmipc_channel_options_t options = {};
  options.kind = GetParam();
  options.message_bytes = 8;
  shmipc_ref_t first;
  ASSERT_EQ(shmipc_channel_create(region_, "one", &options, &first), 0);
  shmipc_ref_t second;
  EXPECT_EQ(shmipc_channel_create(region_, "one", &options, &second), -EEXIST);
  EXPECT_EQ(first.offset, second.offset);
  options.message_bytes = 0;
  EXPECT_EQ(shmipc_channel_create(region_, "two", &options, &second), -EINVAL);
  options.message_bytes = 32 << 20;
  EXPECT_EQ(shmipc_channel_create(region_, "two", &options, &second), -ENOMEM);
  EXPECT_EQ(shmipc_root_remove(region_, "one", &first), 0);
  EXPECT_EQ(shmipc_block_free(region_, shmipc_block_get(region_, first, 1)), 0);
}

TEST_P(ChannelTest, OpenRefusesWhatIsNoChannel) {
  void *channel = Create(8, 4);
  shmipc_port_t *port;
  EXPECT_EQ(shmipc_port_open(region_, nullptr, SHMIPC_SENDER, &port), -EINVAL);
  EXPECT_EQ(shmipc_port_open(region_, &port, SHMIPC_SENDER, &port), -EINVAL);
  EXPECT_EQ(shmipc_port_open(region_, static_cast<char *>(channel) + 8,
                             SHMIPC_SENDER, &port),
            -EINVAL);
  EXPECT_EQ(shmipc_port_open(region_, own_.data<char>(), SHMIPC_SENDER, &port),
            -EPROTO);
  EXPECT_EQ(
      shmipc_port_open(region_, channel, static_cast<shmipc_role_t>(3), &port),
      -EINVAL);
  // Each byte of the geometry counts.
  auto *bytes = static_cast<unsigned char *>(channel);
  for (size_t i = 0; i < sizeof(shmipc_geometry_t); i++) {
    bytes[i] ^= 0x40;
    EXPECT_EQ(shmipc_port_open(region_, channel, SHMIPC_SENDER, &port),
              -EPROTO);
    bytes[i] ^= 0x40;
  }
  own_.options().read_only = true;
  shmipc_region_t *readable = own_.Attach();
  shmipc_ref_t ref = shmipc_ref_of(region_, channel);
  EXPECT_EQ(shmipc_port_open(readable, shmipc_ref_get(readable, ref, 1),
                             SHMIPC_RECEIVER, &port),
            -EROFS);
  shmipc_region_close(readable);
}

TEST_P(ChannelTest, EndsAreLimited) {
  void *channel = Create(8, 4);
  std::vector<shmipc_port_t *> ports;
  shmipc_port_t *port;
  int status;
  while ((status = shmipc_port_open(
              region_, channel,
              ports.size() % 2 == 0 ? SHMIPC_SENDER : SHMIPC_RECEIVER,
              &port)) == 0) {
    ports.push_back(port);
  }
  EXPECT_EQ(ports.size(), IsSpsc() ? 2u : 16u);
  EXPECT_EQ(status, IsSpsc() ? -EBUSY : -EUSERS);
  shmipc_channel_info_t info;
  ASSERT_EQ(shmipc_channel_info_get(region_, channel, &info), 0);
  EXPECT_EQ(info.num_senders, ports.size() / 2);
  EXPECT_EQ(info.num_receivers, ports.size() / 2);
  EXPECT_EQ(info.num_dead, 0u);
  shmipc_port_close(ports[0]);
  EXPECT_EQ(shmipc_port_open(region_, channel, SHMIPC_SENDER, &ports[0]), 0);
  for (shmipc_port_t *one : ports) {
    shmipc_port_close(one);
  }
  shmipc_port_close(nullptr);
  EXPECT_EQ(Problems(region_), "");
}

// -- Messages.

TEST_P(ChannelTest, EveryLengthAroundEveryCorner) {
  void *channel = Create(200, 3);
  Port sender(region_, channel, SHMIPC_SENDER);
  Port receiver(region_, channel, SHMIPC_RECEIVER);
  for (size_t len = 0; len <= 200; len++) {
    for (uint64_t i = 0; i < 7; i++) {
      ASSERT_EQ(sender.Send(Fill(len, i)), 0) << len;
      const void *data;
      size_t got;
      ASSERT_EQ(shmipc_port_peek(receiver.get(), &data, &got, 0), 0);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(data) % 16, 0u);
      EXPECT_TRUE(IsFilled(data, got, len, i)) << len;
      ASSERT_EQ(shmipc_port_release(receiver.get()), 0);
    }
    ASSERT_EQ(Problems(region_), "");
  }
  EXPECT_EQ(sender.Send(Fill(201, 0)), -EMSGSIZE);
}

// Not a byte beside the message is read (ASan sees that) or written, wherever
// it is and goes to.
TEST_P(ChannelTest, CopiesOfEveryLengthStayInside) {
  constexpr size_t kGuard = 40;
  void *channel = Create(300, 3);
  Port sender(region_, channel, SHMIPC_SENDER);
  Port receiver(region_, channel, SHMIPC_RECEIVER);
  for (size_t len = 0; len <= 300; len++) {
    for (size_t shift = 0; shift < 3; shift++) {
      std::string text = Fill(len, shift);
      std::vector<char> exact(text.begin(), text.end());
      ASSERT_EQ(shmipc_port_send(sender.get(), exact.data(), len, 0), 0);
      std::string buffer(len + 2 * kGuard, '#');
      size_t got = 0;
      ASSERT_EQ(shmipc_port_receive(receiver.get(), &buffer[kGuard + shift],
                                    len, &got, 0),
                0);
      std::string guard(kGuard + shift, '#');
      ASSERT_EQ(got, len);
      ASSERT_EQ(buffer, guard + text + std::string(kGuard - shift, '#'));
    }
  }
}

TEST_P(ChannelTest, FullAndEmptySayThatTheyWouldWait) {
  for (bool is_fixed : {false, true}) {
    void *channel = Create(100, 8, is_fixed, is_fixed ? "fixed" : "variable");
    Port sender(region_, channel, SHMIPC_SENDER);
    Port receiver(region_, channel, SHMIPC_RECEIVER);
    for (int lap = 0; lap < 5; lap++) {
      EXPECT_EQ(receiver.Receive(), "ETIMEDOUT");
      uint64_t sent = 0;
      while (sender.Send(Fill(100, sent)) == 0) {
        sent++;
      }
      EXPECT_GE(sent, 8u);
      EXPECT_LE(sent, 9u);
      EXPECT_EQ(sender.Send(Fill(100, 0)), -ETIMEDOUT);
      EXPECT_EQ(sender.Send(Fill(100, 0), 100000), -ETIMEDOUT);
      for (uint64_t i = 0; i < sent; i++) {
        EXPECT_EQ(receiver.Receive(), Fill(100, i));
      }
      EXPECT_EQ(receiver.Receive(100000), "ETIMEDOUT");
    }
  }
}

TEST_P(ChannelTest, FixedTakesNoOtherLength) {
  void *channel = Create(64, 4, true);
  Port sender(region_, channel, SHMIPC_SENDER);
  Port receiver(region_, channel, SHMIPC_RECEIVER);
  EXPECT_EQ(sender.Send(Fill(63, 1)), -EMSGSIZE);
  EXPECT_EQ(sender.Send(Fill(65, 1)), -EMSGSIZE);
  void *data;
  ASSERT_EQ(shmipc_port_reserve(sender.get(), 64, &data, 0), 0);
  EXPECT_EQ(shmipc_port_commit(sender.get(), 63), -EMSGSIZE);
  memcpy(data, Fill(64, 2).data(), 64);
  EXPECT_EQ(shmipc_port_commit(sender.get(), 64), 0);
  EXPECT_EQ(receiver.Receive(), Fill(64, 2));
}

TEST_P(ChannelTest, ReservedMayBecomeShorterOrNothing) {
  void *channel = Create(1000, 4);
  Port sender(region_, channel, SHMIPC_SENDER);
  Port receiver(region_, channel, SHMIPC_RECEIVER);
  for (uint64_t i = 0; i < 100; i++) {
    void *data;
    ASSERT_EQ(shmipc_port_reserve(sender.get(), 1000, &data, 0), 0);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(data) % 16, 0u);
    memset(data, 0xee, 1000);
    EXPECT_EQ(receiver.Receive(), "ETIMEDOUT");
    if (i % 3 == 0) {
      EXPECT_EQ(shmipc_port_abort(sender.get()), 0);
      EXPECT_EQ(receiver.Receive(), "ETIMEDOUT");
      continue;
    }
    EXPECT_EQ(shmipc_port_commit(sender.get(), 1001), -EMSGSIZE);
    size_t len = i * 10;
    memcpy(data, Fill(len, i).data(), len);
    EXPECT_EQ(shmipc_port_commit(sender.get(), len), 0);
    EXPECT_EQ(receiver.Receive(), Fill(len, i));
  }
  EXPECT_EQ(Problems(region_), "");
}

TEST_P(ChannelTest, TooSmallABufferLosesNothing) {
  void *channel = Create(100, 4);
  Port sender(region_, channel, SHMIPC_SENDER);
  Port receiver(region_, channel, SHMIPC_RECEIVER);
  ASSERT_EQ(sender.Send(Fill(100, 5)), 0);
  char buffer[100];
  size_t len = 0;
  EXPECT_EQ(shmipc_port_receive(receiver.get(), buffer, 99, &len, 0),
            -EMSGSIZE);
  EXPECT_EQ(len, 100u);
  EXPECT_EQ(receiver.Receive(), Fill(100, 5));
}

TEST_P(ChannelTest, MisuseIsAnError) {
  void *channel = Create(100, 4);
  Port sender(region_, channel, SHMIPC_SENDER);
  Port receiver(region_, channel, SHMIPC_RECEIVER);
  void *data;
  const void *seen;
  size_t len;
  EXPECT_EQ(shmipc_port_commit(sender.get(), 0), -EINVAL);
  EXPECT_EQ(shmipc_port_abort(sender.get()), -EINVAL);
  EXPECT_EQ(shmipc_port_release(receiver.get()), -EINVAL);
  EXPECT_EQ(receiver.Send("x"), -EPERM);
  EXPECT_EQ(sender.Receive(), "EPERM");
  EXPECT_EQ(shmipc_port_reserve(receiver.get(), 1, &data, 0), -EPERM);
  EXPECT_EQ(shmipc_port_peek(sender.get(), &seen, &len, 0), -EPERM);
  EXPECT_EQ(shmipc_port_commit(receiver.get(), 0), -EPERM);
  EXPECT_EQ(shmipc_port_abort(receiver.get()), -EPERM);
  EXPECT_EQ(shmipc_port_release(sender.get()), -EPERM);
  ASSERT_EQ(shmipc_port_reserve(sender.get(), 1, &data, 0), 0);
  EXPECT_EQ(shmipc_port_reserve(sender.get(), 1, &data, 0), -EBUSY);
  EXPECT_EQ(sender.Send("x"), -EBUSY);
  ASSERT_EQ(shmipc_port_commit(sender.get(), 1), 0);
  ASSERT_EQ(shmipc_port_peek(receiver.get(), &seen, &len, 0), 0);
  EXPECT_EQ(shmipc_port_peek(receiver.get(), &seen, &len, 0), -EBUSY);
  EXPECT_EQ(receiver.Receive(), "EBUSY");
  EXPECT_EQ(shmipc_port_release(receiver.get()), 0);
  EXPECT_EQ(shmipc_port_arm(receiver.get()), -EINVAL) << "no descriptor";
}

TEST_P(ChannelTest, ChildOfForkHasNoPort) {
  void *channel = Create(100, 4);
  Port sender(region_, channel, SHMIPC_SENDER);
  Port receiver(region_, channel, SHMIPC_RECEIVER);
  ASSERT_EQ(sender.Send("first"), 0);
  Process child([&] {
    size_t len;
    const void *data;
    bool good = sender.Send("x") == -ECHILD &&
                shmipc_port_peek(receiver.get(), &data, &len, 0) == -ECHILD &&
                shmipc_port_shut(sender.get()) == -ECHILD &&
                shmipc_port_fd(sender.get()) == -ECHILD;
    // Frees memory, and no more.
    sender.Close();
    receiver.Close();
    return good ? 0 : 1;
  });
  EXPECT_EQ(child.Wait(), 0);
  EXPECT_EQ(sender.Send("second"), 0);
  EXPECT_EQ(receiver.Receive(), "first");
  EXPECT_EQ(receiver.Receive(), "second");
}

// Random operations; what was committed has to come, in order.
TEST_P(ChannelTest, RandomOperationsAgreeWithAModel) {
  for (bool is_fixed : {false, true}) {
    std::mt19937_64 random(Seed() + is_fixed);
    void *channel = Create(300, 5, is_fixed, is_fixed ? "fixed" : "variable");
    Port sender(region_, channel, SHMIPC_SENDER);
    Port receiver(region_, channel, SHMIPC_RECEIVER);
    std::deque<std::string> model;
    std::string reserved;
    uint64_t number = 0;
    for (int i = 0; i < 60000; i++) {
      size_t len = is_fixed ? 300 : random() % 301;
      void *data;
      const void *seen;
      size_t got;
      switch (random() % 8) {
        case 0:
        case 1:
          if (sender.Send(Fill(len, number)) == 0) {
            model.push_back(Fill(len, number++));
          } else if (IsSpsc()) {
            // MPMC: aborted ones have their place until a receiver came by.
            ASSERT_GE(model.size(), 5u);
          }
          break;
        case 2:
          if (shmipc_port_reserve(sender.get(), 300, &data, 0) == 0) {
            memset(data, 0x5a, 300);
            if (random() % 3 == 0) {
              ASSERT_EQ(shmipc_port_abort(sender.get()), 0);
            } else {
              memcpy(data, Fill(len, number).data(), len);
              ASSERT_EQ(shmipc_port_commit(sender.get(), len), 0);
              model.push_back(Fill(len, number++));
            }
          }
          break;
        case 3:
        case 4: {
          std::string message = receiver.Receive();
          ASSERT_EQ(message, model.empty() ? "ETIMEDOUT" : model.front());
          if (!model.empty()) {
            model.pop_front();
          }
          break;
        }
        case 5:
          if (shmipc_port_peek(receiver.get(), &seen, &got, 0) == 0) {
            ASSERT_FALSE(model.empty());
            ASSERT_EQ(std::string(static_cast<const char *>(seen), got),
                      model.front());
            if (random() % 4 == 0) {
              // Not released: the next has it first.
              receiver.Reopen();
            } else {
              ASSERT_EQ(shmipc_port_release(receiver.get()), 0);
              model.pop_front();
            }
          } else {
            ASSERT_TRUE(model.empty());
          }
          break;
        case 6:
          if (random() % 16 == 0) {
            sender.Reopen();
          }
          break;
        default:
          if (random() % 256 == 0) {
            ASSERT_EQ(Problems(region_), "");
          }
      }
    }
  }
}

// Counters of a channel that has been used for years.
TEST_P(ChannelTest, CountersWrapAround) {
  void *channel = Create(40, 4);
  if (!IsSpsc()) {
    shmipc_view_t view;
    ASSERT_EQ(shmipc_view_make(region_, channel, &view), 0);
    for (uint64_t i = 0; i <= view.mask; i++) {
      shmipc_cell_of(&view, i)->word =
          SHMIPC_CELL_WORD(0xfffffffeu, 0, SHMIPC_CELL_FREE);
    }
  }
  // And the ports' generations.
  auto *ports = static_cast<shmipc_channel_t *>(channel)->ports;
  ports[0].word = SHMIPC_PORT_WORD(0, 0, 0x3ffffffdu);
  ports[1].word = SHMIPC_PORT_WORD(0, 0, 0x1fffdu);
  Port sender(region_, channel, SHMIPC_SENDER);
  Port receiver(region_, channel, SHMIPC_RECEIVER);
  uint64_t next = 0;
  for (uint64_t i = 0; i < 64; i++) {
    ASSERT_EQ(sender.Send(Fill(40, i)), 0);
    if (i % 5 == 1) {
      sender.Reopen();
      receiver.Reopen();
    }
    if (i >= 3) {
      ASSERT_EQ(receiver.Receive(), Fill(40, next++));
    }
    ASSERT_EQ(Problems(region_), "") << i;
  }
}

}  // namespace
