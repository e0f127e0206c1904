// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The reader where input does not come, or comes in errors and pieces.

#include "bufio/reader.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "bufio/bufio_testing.h"
#include "bufio/reader_testing.h"
#include "bufio/scan.h"
#include "bufio/writer.h"
#include "gtest/gtest.h"

namespace {

using bufio_testing::Call;
using bufio_testing::FaultyKernel;
using bufio_testing::RandomText;
using bufio_testing::ReaderTest;
using bufio_testing::Seed;
using bufio_testing::Split;
using bufio_testing::Terminal;
using bufio_testing::ToString;
using bufio_testing::WriteFile;

// ---- pipes, sockets, blocking ----

TEST_F(ReaderTest, PairedWriterIsFlushedBeforeAReadBlocks) {
  int sockets[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets), 0);
  std::thread peer([&] {
    char question[8] = {};
    // Answers only what it was asked: without the flush both would wait.
    EXPECT_EQ(read(sockets[1], question, sizeof(question)), 5);
    EXPECT_EQ(write(sockets[1], "world\n", 6), 6);
  });
  bufio_writer_t writer;
  ASSERT_EQ(bufio_writer_attach(&writer, sockets[0], nullptr), 0);
  ASSERT_EQ(bufio_reader_attach(&reader_, sockets[0], nullptr), 0);
  bufio_reader_pair(&reader_, &writer);
  EXPECT_EQ(bufio_writer_puts(&writer, "hello"), 0);
  bufio_slice_t line;
  ASSERT_EQ(bufio_reader_next_line(&reader_, &line), 1);
  EXPECT_EQ(ToString(line), "world");
  bufio_reader_pair(&reader_, nullptr);
  EXPECT_EQ(bufio_writer_close(&writer), 0);
  peer.join();
  close(sockets[0]);
  close(sockets[1]);
}

// Lines come as they are typed, and end when the user hangs up.
TEST_F(ReaderTest, TerminalsAreReadAndWritten) {
  auto terminal = std::make_unique<Terminal>();
  int descriptor = terminal->Open();
  bufio_writer_t writer;
  bufio_writer_options_t writer_options = {};
  writer_options.line_buffered = true;
  ASSERT_EQ(bufio_writer_attach(&writer, descriptor, &writer_options), 0);
  ASSERT_EQ(bufio_reader_attach(&reader_, descriptor, nullptr), 0);
  bufio_reader_pair(&reader_, &writer);
  EXPECT_EQ(bufio_writer_puts(&writer, "name? "), 0);
  ASSERT_EQ(write(terminal->user(), "one\ntw", 6), 6);
  bufio_slice_t line;
  ASSERT_EQ(bufio_reader_next_line(&reader_, &line), 1);
  EXPECT_EQ(ToString(line), "one");
  // The prompt was flushed before the wait for an answer.
  char prompt[16];
  ASSERT_EQ(read(terminal->user(), prompt, sizeof(prompt)), 6);
  ASSERT_EQ(write(terminal->user(), "o\n", 2), 2);
  ASSERT_EQ(bufio_reader_next_line(&reader_, &line), 1);
  EXPECT_EQ(ToString(line), "two");
  EXPECT_EQ(bufio_writer_puts(&writer, "thanks\n"), 0);
  ASSERT_EQ(read(terminal->user(), prompt, sizeof(prompt)), 7);
  terminal.reset();
  EXPECT_EQ(bufio_reader_next_line(&reader_, &line), 0);
  bufio_reader_close(&reader_);
  EXPECT_EQ(bufio_writer_close(&writer), 0);
  close(descriptor);
}

TEST_F(ReaderTest, WouldBlockIsReturnedAndTheLineGoesOn) {
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_NONBLOCK), 0);
  options_.return_would_block = true;
  ASSERT_EQ(bufio_reader_attach(&reader_, ends[0], &options_), 0);
  bufio_slice_t line;
  EXPECT_EQ(bufio_reader_next_line(&reader_, &line), -EAGAIN);
  ASSERT_EQ(write(ends[1], "hel", 3), 3);
  EXPECT_EQ(bufio_reader_next_line(&reader_, &line), -EAGAIN);
  ASSERT_EQ(write(ends[1], "lo\nx", 4), 4);
  ASSERT_EQ(bufio_reader_next_line(&reader_, &line), 1);
  EXPECT_EQ(ToString(line), "hello");
  close(ends[1]);
  ASSERT_EQ(bufio_reader_next_line(&reader_, &line), 1);
  EXPECT_EQ(ToString(line), "x");
  EXPECT_EQ(bufio_reader_next_line(&reader_, &line), 0);
  close(ends[0]);
}

TEST_F(ReaderTest, WouldBlockIsWaitedForByDefault) {
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_NONBLOCK), 0);
  ASSERT_EQ(bufio_reader_attach(&reader_, ends[0], nullptr), 0);
  FaultyKernel kernel;
  bool is_written = false;
  kernel.decide = [&](Call call, size_t) -> int64_t {
    if (call == Call::kWait && !is_written) {
      is_written = true;
      EXPECT_EQ(write(ends[1], "late\n", 5), 5);
    }
    return 0;
  };
  bufio_slice_t line;
  ASSERT_EQ(bufio_reader_next_line(&reader_, &line), 1);
  EXPECT_EQ(ToString(line), "late");
  EXPECT_TRUE(is_written);
  close(ends[0]);
  close(ends[1]);
}

TEST_F(ReaderTest, PipesCannotSeekOutsideOfTheBuffer) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  ASSERT_EQ(write(ends[1], "hello", 5), 5);
  ASSERT_EQ(bufio_reader_attach(&reader_, ends[0], nullptr), 0);
  EXPECT_EQ(bufio_reader_getc(&reader_), 'h');
  EXPECT_EQ(bufio_reader_seek(&reader_, 3, SEEK_SET), 0);
  EXPECT_EQ(bufio_reader_getc(&reader_), 'l');
  EXPECT_EQ(bufio_reader_seek(&reader_, 100, SEEK_SET), -ESPIPE);
  EXPECT_EQ(bufio_reader_getc(&reader_), 'o');
  close(ends[0]);
  close(ends[1]);
}

// ---- a kernel that fails ----

TEST_F(ReaderTest, EveryErrorOfReadIsReturnedAndNothingIsLost) {
  const std::string text = "first\nsecond\nthird";
  for (int error : bufio_testing::PlausibleErrors(Call::kRead)) {
    for (uint64_t failing = 1; failing <= 6; failing++) {
      options_.return_would_block = true;
      Open(text);
      FaultyKernel kernel;
      kernel.decide = [&](Call call, size_t) -> int64_t {
        if (call != Call::kRead) {
          return 0;
        }
        return kernel.count(call) == failing ? -error : 4;
      };
      std::vector<std::string> lines;
      int failures = 0;
      for (;;) {
        bufio_slice_t line;
        int status = bufio_reader_next_line(&reader_, &line);
        if (status == 0) {
          break;
        }
        if (status < 0) {
          EXPECT_EQ(status, -error);
          failures++;
          ASSERT_LT(failures, 3);
        } else {
          lines.push_back(ToString(line));
        }
        EXPECT_SOUND(&reader_);
      }
      EXPECT_EQ(failures, error == EINTR ? 0 : 1);
      EXPECT_EQ(lines, Split(text, '\n', false));
      bufio_reader_close(&reader_);
    }
  }
}

TEST_F(ReaderTest, EveryOtherCallOfOpenMayFail) {
  WriteFile(path_, "x");
  for (uint64_t failing = 1;; failing++) {
    FaultyKernel kernel;
    kernel.decide = [&](Call, size_t) -> int64_t {
      return kernel.calls() == failing ? -ENOMEM : 0;
    };
    int status = bufio_reader_open(&reader_, path_.c_str(), nullptr);
    if (status == 0) {
      EXPECT_GT(failing, 2u);
      bufio_reader_close(&reader_);
      break;
    }
    EXPECT_EQ(status, -ENOMEM);
    EXPECT_EQ(reader_.memory, nullptr);
  }
}

TEST_F(ReaderTest, NoMemoryForALongLineLosesNothing) {
  Open(std::string(400000, 'x') + "\ny\n");
  FaultyKernel kernel;
  bool refuse = true;
  kernel.decide = [&](Call call, size_t) -> int64_t {
    return call == Call::kMap && refuse ? -ENOMEM : 0;
  };
  bufio_slice_t line;
  EXPECT_EQ(bufio_reader_next_line(&reader_, &line), -ENOMEM);
  refuse = false;
  ASSERT_EQ(bufio_reader_next_line(&reader_, &line), 1);
  EXPECT_EQ(line.len, 400000u);
  EXPECT_EQ(Lines(), (std::vector<std::string>{"y"}));
}

TEST_F(ReaderTest, FailedSeekLeavesTheReaderWhereItWas) {
  Open(std::string(1 << 20, 'x'));
  EXPECT_EQ(bufio_reader_getc(&reader_), 'x');
  FaultyKernel kernel;
  kernel.decide = [&](Call call, size_t) -> int64_t {
    return call == Call::kSeek ? -EIO : 0;
  };
  EXPECT_EQ(bufio_reader_seek(&reader_, 900000, SEEK_SET), -EIO);
  EXPECT_EQ(bufio_reader_tell(&reader_), 1u);
  EXPECT_EQ(bufio_reader_getc(&reader_), 'x');
}

// ---- model ----

// Random operations on random text over random reads, against the text.
class ReaderModelTest : public ReaderTest,
                        public testing::WithParamInterface<int> {};

TEST_P(ReaderModelTest, AgreesWithTheText) {
  auto before = bufio_scan_current();
  if (!bufio_scan_use(static_cast<bufio_scan_level_t>(GetParam() % 4))) {
    GTEST_SKIP() << "this processor has no such instructions";
  }
  uint64_t seed = Seed() * 1000 + static_cast<uint64_t>(GetParam());
  std::mt19937_64 random(seed);
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::string text = RandomText(&random, 100000);
  if (random() % 2 == 0) {
    text.pop_back();
  }
  std::vector<char> memory(64 + random() % 1000);
  if (GetParam() >= 4) {
    options_.memory = memory.data();
    options_.memory_bytes = memory.size();
  } else {
    options_.buffer_bytes = 1 + random() % 20000;
  }
  options_.strip_cr = random() % 2 == 0;
  options_.return_would_block = random() % 2 == 0;
  Open(text);
  FaultyKernel kernel;
  kernel.decide = [&](Call call, size_t len) -> int64_t {
    if (call != Call::kRead && call != Call::kWait) {
      return 0;
    }
    const std::vector<int> &errors = bufio_testing::PlausibleErrors(call);
    if (random() % 8 == 0) {
      return -errors[random() % errors.size()];
    }
    return call == Call::kRead ? static_cast<int64_t>(1 + random() % len) : 0;
  };
  size_t at = 0;
  for (int step = 0; step < 20000; step++) {
    EXPECT_SOUND(&reader_);
    ASSERT_EQ(bufio_reader_tell(&reader_), at);
    bufio_slice_t slice = {};
    switch (random() % 8) {
      case 0:
      case 1:
      case 2: {
        int status = bufio_reader_next_line(&reader_, &slice);
        if (status > 0) {
          std::string rest = text.substr(at, text.find('\n', at) - at + 1);
          ASSERT_EQ(ToString(slice), Split(rest, '\n', options_.strip_cr)[0]);
          at = std::min(text.size(), at + rest.size());
        } else if (status == 0) {
          ASSERT_EQ(at, text.size());
        }
        break;
      }
      case 3: {
        int byte = bufio_reader_getc(&reader_);
        if (byte >= 0) {
          ASSERT_EQ(static_cast<char>(byte), text[at]);
          at++;
        }
        break;
      }
      case 4: {
        std::string piece(random() % 3000, '\0');
        size_t count = 0;
        (void)!bufio_reader_read(&reader_, &piece[0], piece.size(), &count);
        ASSERT_EQ(piece.substr(0, count), text.substr(at, count));
        at += count;
        break;
      }
      case 5: {
        int status = bufio_reader_next_until(&reader_, 'q', &slice);
        if (status > 0) {
          ASSERT_EQ(ToString(slice), text.substr(at, slice.len));
          at += slice.len;
          at += !bufio_reader_is_unterminated(&reader_);
        }
        break;
      }
      case 6: {
        size_t want = random() % 60;
        if (bufio_reader_peek(&reader_, want, &slice) > 0) {
          ASSERT_EQ(ToString(slice), text.substr(at, slice.len));
          size_t step_bytes = random() % (want + 1);
          bufio_reader_consume(&reader_, step_bytes);
          at += step_bytes;
        }
        break;
      }
      case 7: {
        if (at > 0 && random() % 2 == 0) {
          ASSERT_TRUE(reader_.cursor == reader_.start ||
                      bufio_reader_ungetc(&reader_, text[at - 1]));
          at = bufio_reader_tell(&reader_);
          break;
        }
        size_t target =
            random() % 20 == 0 ? random() % text.size() : at + random() % 100;
        target = std::min(target, text.size());
        ASSERT_EQ(
            bufio_reader_seek(&reader_, static_cast<int64_t>(target), SEEK_SET),
            0);
        at = target;
        break;
      }
    }
    if (at == text.size()) {
      ASSERT_EQ(bufio_reader_seek(&reader_, 0, SEEK_SET), 0);
      at = 0;
    }
  }
  bufio_scan_use(before);
}

INSTANTIATE_TEST_SUITE_P(Seeds, ReaderModelTest, testing::Range(0, 12));

}  // namespace
