// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "bufio/reader.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "bufio/bufio_testing.h"
#include "bufio/reader_testing.h"
#include "bufio/writer.h"
#include "gtest/gtest.h"

namespace {

using bufio_testing::Call;
using bufio_testing::FaultyKernel;
using bufio_testing::Pattern;
using bufio_testing::RandomText;
using bufio_testing::ReaderTest;
using bufio_testing::ReadFile;
using bufio_testing::Seed;
using bufio_testing::Split;
using bufio_testing::TempPath;
using bufio_testing::ToString;
using bufio_testing::WriteFile;

// ---- lifecycle ----

TEST_F(ReaderTest, OpenOfMissingFileSaysSo) {
  EXPECT_EQ(bufio_reader_open(&reader_, "/no/such/file", nullptr), -ENOENT);
  bufio_reader_close(&reader_);
}

TEST_F(ReaderTest, AttachOfBadDescriptorSaysSo) {
  EXPECT_EQ(bufio_reader_attach(&reader_, -1, nullptr), -EBADF);
  EXPECT_EQ(bufio_reader_attach(&reader_, 9999, nullptr), -EBADF);
}

TEST_F(ReaderTest, TooLittleMemoryIsRefused) {
  char memory[BUFIO_READER_MEMORY_MIN - 1];
  options_.memory = memory;
  options_.memory_bytes = sizeof(memory);
  EXPECT_EQ(bufio_reader_attach(&reader_, 0, &options_), -EINVAL);
}

TEST_F(ReaderTest, CloseTwiceAndOfNullAndZeroedIsNothing) {
  Open("x");
  bufio_reader_close(&reader_);
  bufio_reader_close(&reader_);
  bufio_reader_close(nullptr);
  bufio_reader_t zeroed = {};
  bufio_reader_close(&zeroed);
}

TEST_F(ReaderTest, CallsOnAClosedReaderFail) {
  Open("x");
  bufio_reader_close(&reader_);
  bufio_slice_t slice = {};
  size_t count = 1;
  char byte;
  EXPECT_EQ(bufio_reader_next_line(&reader_, &slice), -EBADF);
  EXPECT_EQ(bufio_reader_getc(&reader_), -1);
  EXPECT_EQ(bufio_reader_error(&reader_), -EBADF);
  EXPECT_EQ(bufio_reader_read(&reader_, &byte, 1, &count), -EBADF);
  EXPECT_EQ(bufio_reader_slurp(&reader_, &slice), -EBADF);
  EXPECT_EQ(bufio_reader_seek(&reader_, 0, SEEK_SET), -EBADF);
  EXPECT_FALSE(bufio_reader_ungetc(&reader_, 'x'));
}

TEST_F(ReaderTest, CloseOfAttachedPutsTheDescriptorWhereTheReaderWas) {
  WriteFile(path_, "one\ntwo\nthree\n");
  int descriptor = open(path_.c_str(), O_RDONLY);
  ASSERT_EQ(lseek(descriptor, 4, SEEK_SET), 4);
  ASSERT_EQ(bufio_reader_attach(&reader_, descriptor, nullptr), 0);
  EXPECT_EQ(bufio_reader_tell(&reader_), 4u);
  bufio_slice_t line;
  ASSERT_EQ(bufio_reader_next_line(&reader_, &line), 1);
  EXPECT_EQ(ToString(line), "two");
  bufio_reader_close(&reader_);
  EXPECT_EQ(lseek(descriptor, 0, SEEK_CUR), 8);
  close(descriptor);
}

// ---- lines ----

TEST_F(ReaderTest, EmptyFileHasNoLines) {
  Open("");
  EXPECT_TRUE(Lines().empty());
}

TEST_F(ReaderTest, LastLineNeedsNoEnd) {
  Open("a\n\nbc");
  EXPECT_EQ(Lines(), (std::vector<std::string>{"a", "", "bc"}));
  EXPECT_TRUE(bufio_reader_is_unterminated(&reader_));
}

TEST_F(ReaderTest, LastLineWithEndIsTerminated) {
  Open("a\n\n");
  EXPECT_EQ(Lines(), (std::vector<std::string>{"a", ""}));
  EXPECT_FALSE(bufio_reader_is_unterminated(&reader_));
}

TEST_F(ReaderTest, LinesMayHoldNuls) {
  Open(std::string("a\0b\n\0\n", 6));
  EXPECT_EQ(Lines(), (std::vector<std::string>{std::string("a\0b", 3),
                                               std::string("\0", 1)}));
}

TEST_F(ReaderTest, CarriageReturnIsPartOfTheLineUnlessAskedFor) {
  Open("a\r\n\r\nb\rc\n\r");
  EXPECT_EQ(Lines(), (std::vector<std::string>{"a\r", "\r", "b\rc", "\r"}));
  bufio_reader_close(&reader_);
  options_.strip_cr = true;
  Open("a\r\n\r\nb\rc\n\r");
  EXPECT_EQ(Lines(), (std::vector<std::string>{"a", "", "b\rc", "\r"}));
}

TEST_F(ReaderTest, LinesOfOtherDelimiters) {
  options_.use_delimiter = true;
  Open(std::string("one\0two\nthree\0", 14));
  EXPECT_EQ(Lines(), (std::vector<std::string>{"one", "two\nthree"}));
}

TEST_F(ReaderTest, LineOfMegabytesIsOneSlice) {
  std::string text = "short\n" + std::string(5 << 20, 'x') + "\nlast\n";
  Open(text);
  EXPECT_EQ(Lines(), Split(text, '\n', false));
  EXPECT_SOUND(&reader_);
}

TEST_F(ReaderTest, LimitOfOwnMemoryIsKept) {
  options_.max_bytes = 300000;
  Open(std::string(1 << 20, 'x') + "\n");
  bufio_slice_t line;
  EXPECT_EQ(bufio_reader_next_line(&reader_, &line), -ENOBUFS);
  EXPECT_GE(bufio_reader_buffered(&reader_).len, 290000u);
  EXPECT_EQ(bufio_reader_tell(&reader_), 0u);
}

TEST_F(ReaderTest, CallersMemoryIsNeverGrown) {
  char memory[256];
  options_.memory = memory;
  options_.memory_bytes = sizeof(memory);
  Open(std::string(200, 'a') + "\n" + std::string(300, 'b') + "\nc\n");
  bufio_slice_t line;
  ASSERT_EQ(bufio_reader_next_line(&reader_, &line), 1);
  EXPECT_EQ(ToString(line), std::string(200, 'a'));
  EXPECT_GE(reinterpret_cast<const char *>(line.data), memory);
  EXPECT_EQ(bufio_reader_next_line(&reader_, &line), -ENOBUFS);
  // What does not fit as a line can be had in pieces.
  std::string got;
  while (got.size() < 301) {
    int byte = bufio_reader_getc(&reader_);
    ASSERT_GE(byte, 0);
    got += static_cast<char>(byte);
  }
  EXPECT_EQ(got, std::string(300, 'b') + "\n");
  ASSERT_EQ(bufio_reader_next_line(&reader_, &line), 1);
  EXPECT_EQ(ToString(line), "c");
}

TEST_F(ReaderTest, FileThatGrowsIsReadOn) {
  Open("one\ntw");
  EXPECT_EQ(Lines(), (std::vector<std::string>{"one", "tw"}));
  int descriptor = open(path_.c_str(), O_WRONLY | O_APPEND);
  ASSERT_EQ(write(descriptor, "o\nthree\n", 8), 8);
  close(descriptor);
  EXPECT_EQ(Lines(), (std::vector<std::string>{"o", "three"}));
}

TEST_F(ReaderTest, UntilSplitsAtAnyByteAndMixesWithLines) {
  Open("a,b\nc;d\n,e");
  bufio_slice_t slice = {};
  ASSERT_EQ(bufio_reader_next_until(&reader_, ',', &slice), 1);
  EXPECT_EQ(ToString(slice), "a");
  ASSERT_EQ(bufio_reader_next_line(&reader_, &slice), 1);
  EXPECT_EQ(ToString(slice), "b");
  ASSERT_EQ(bufio_reader_next_until(&reader_, ';', &slice), 1);
  EXPECT_EQ(ToString(slice), "c");
  ASSERT_EQ(bufio_reader_next_until(&reader_, ',', &slice), 1);
  EXPECT_EQ(ToString(slice), "d\n");
  ASSERT_EQ(bufio_reader_next_until(&reader_, ',', &slice), 1);
  EXPECT_EQ(ToString(slice), "e");
  EXPECT_TRUE(bufio_reader_is_unterminated(&reader_));
  EXPECT_EQ(bufio_reader_next_until(&reader_, ',', &slice), 0);
}

TEST_F(ReaderTest, RecordsOfFixedLength) {
  Open(Pattern(0, 1000003));
  bufio_slice_t record;
  ASSERT_EQ(bufio_reader_next_record(&reader_, 0, &record), -EINVAL);
  for (size_t at = 0; at < 1000000; at += 1000) {
    ASSERT_EQ(bufio_reader_next_record(&reader_, 1000, &record), 1);
    ASSERT_EQ(ToString(record), Pattern(at, 1000));
    ASSERT_FALSE(bufio_reader_is_unterminated(&reader_));
  }
  ASSERT_EQ(bufio_reader_next_record(&reader_, 1000, &record), 1);
  EXPECT_EQ(ToString(record), Pattern(1000000, 3));
  EXPECT_TRUE(bufio_reader_is_unterminated(&reader_));
  EXPECT_EQ(bufio_reader_next_record(&reader_, 1000, &record), 0);
}

// ---- bytes and views ----

TEST_F(ReaderTest, GetcPeekcUngetc) {
  Open("ab");
  EXPECT_EQ(bufio_reader_peekc(&reader_), 'a');
  EXPECT_EQ(bufio_reader_getc(&reader_), 'a');
  EXPECT_TRUE(bufio_reader_ungetc(&reader_, 'a'));
  EXPECT_EQ(bufio_reader_getc(&reader_), 'a');
  EXPECT_EQ(bufio_reader_getc(&reader_), 'b');
  EXPECT_EQ(bufio_reader_getc(&reader_), -1);
  EXPECT_EQ(bufio_reader_error(&reader_), 0);
  EXPECT_TRUE(bufio_reader_ungetc(&reader_, 'x'));
  EXPECT_EQ(bufio_reader_getc(&reader_), 'x');
  EXPECT_EQ(bufio_reader_tell(&reader_), 2u);
  EXPECT_SOUND(&reader_);
}

TEST_F(ReaderTest, UngetcBeforeTheStartOrOfNoByteIsRefused) {
  Open("ab");
  EXPECT_FALSE(bufio_reader_ungetc(&reader_, 'a'));
  EXPECT_EQ(bufio_reader_getc(&reader_), 'a');
  EXPECT_FALSE(bufio_reader_ungetc(&reader_, -1));
  EXPECT_FALSE(bufio_reader_ungetc(&reader_, 256));
}

TEST_F(ReaderTest, UngetcOfALineEndMakesALine) {
  Open("abc\ndef\n");
  bufio_slice_t line;
  ASSERT_EQ(bufio_reader_next_line(&reader_, &line), 1);
  EXPECT_EQ(bufio_reader_getc(&reader_), 'd');
  EXPECT_TRUE(bufio_reader_ungetc(&reader_, '\n'));
  EXPECT_EQ(Lines(), (std::vector<std::string>{"", "ef"}));
}

TEST_F(ReaderTest, UngetcAlwaysTakesOneByteBackAcrossReads) {
  std::string text = Pattern(0, 1000);
  char memory[BUFIO_READER_MEMORY_MIN];
  options_.memory = memory;
  options_.memory_bytes = sizeof(memory);
  Open(text);
  for (const char &expected : text) {
    int byte = bufio_reader_getc(&reader_);
    ASSERT_EQ(static_cast<char>(byte), expected);
    ASSERT_TRUE(bufio_reader_ungetc(&reader_, byte));
    ASSERT_EQ(bufio_reader_getc(&reader_), byte);
    ASSERT_EQ(bufio_reader_peekc(&reader_) < 0, &expected == &text.back());
    ASSERT_TRUE(bufio_reader_ungetc(&reader_, byte));
    ASSERT_EQ(bufio_reader_getc(&reader_), byte);
  }
}

TEST_F(ReaderTest, GetterDeliversEveryByte) {
  std::string text = Pattern(0, 300000);
  Open(text);
  std::string got;
  bufio_getter_t getter = bufio_getter_begin(&reader_);
  int byte;
  while ((byte = bufio_getter_getc(&getter)) >= 0) {
    got += static_cast<char>(byte);
  }
  bufio_getter_end(&getter);
  EXPECT_EQ(got, text);
  EXPECT_EQ(bufio_reader_tell(&reader_), text.size());
}

TEST_F(ReaderTest, PeekShowsAtLeastWhatIsAskedFor) {
  Open(Pattern(0, 500000));
  bufio_slice_t view;
  ASSERT_EQ(bufio_reader_peek(&reader_, 300000, &view), 1);
  EXPECT_GE(view.len, 300000u);
  EXPECT_EQ(ToString(view), Pattern(0, view.len));
  bufio_reader_consume(&reader_, 1000);
  ASSERT_EQ(bufio_reader_peek(&reader_, 1, &view), 1);
  EXPECT_EQ(ToString(view), Pattern(1000, view.len));
  EXPECT_EQ(bufio_reader_peek(&reader_, 1 << 20, &view), 0);
  EXPECT_EQ(view.len, 499000u);
  bufio_reader_consume(&reader_, SIZE_MAX);
  EXPECT_EQ(bufio_reader_tell(&reader_), 500000u);
}

// ---- bulk, position ----

TEST_F(ReaderTest, ReadCopiesAcrossAndPastTheBuffer) {
  std::string text = Pattern(0, 1000000);
  Open(text);
  std::string got;
  for (size_t len : {1, 10, 4096, 131072, 400000, 7, 131071, 1000000}) {
    std::string piece(len, '\0');
    size_t count = 0;
    ASSERT_EQ(bufio_reader_read(&reader_, &piece[0], len, &count), 0);
    got += piece.substr(0, count);
    EXPECT_SOUND(&reader_);
    EXPECT_EQ(bufio_reader_tell(&reader_), got.size());
  }
  EXPECT_EQ(got, text);
  size_t count = 1;
  char byte;
  EXPECT_EQ(bufio_reader_read(&reader_, &byte, 1, &count), 0);
  EXPECT_EQ(count, 0u);
  EXPECT_TRUE(bufio_reader_ungetc(&reader_, text.back()));
}

TEST_F(ReaderTest, SlurpIsTheRest) {
  std::string text = Pattern(0, 3000000);
  Open(text);
  EXPECT_EQ(bufio_reader_getc(&reader_), static_cast<unsigned char>(text[0]));
  bufio_slice_t all = {};
  ASSERT_EQ(bufio_reader_slurp(&reader_, &all), 0);
  EXPECT_EQ(ToString(all), text.substr(1));
  ASSERT_EQ(bufio_reader_slurp(&reader_, &all), 0);
  EXPECT_EQ(all.len, 0u);
}

TEST_F(ReaderTest, SlurpOfAPipe) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  std::string text = Pattern(0, 700000);
  std::thread writer([&] {
    size_t done = 0;
    while (done < text.size()) {
      done +=
          static_cast<size_t>(write(ends[1], &text[done], text.size() - done));
    }
    close(ends[1]);
  });
  ASSERT_EQ(bufio_reader_attach(&reader_, ends[0], nullptr), 0);
  bufio_slice_t all = {};
  ASSERT_EQ(bufio_reader_slurp(&reader_, &all), 0);
  EXPECT_EQ(ToString(all), text);
  writer.join();
  close(ends[0]);
}

TEST_F(ReaderTest, SeekAndTellAgreeWithTheBytes) {
  std::string text = Pattern(0, 400000);
  Open(text);
  std::mt19937_64 random(Seed());
  for (int i = 0; i < 2000; i++) {
    auto target = static_cast<int64_t>(random() % text.size());
    int64_t here = static_cast<int64_t>(bufio_reader_tell(&reader_));
    int whence = static_cast<int>(random() % 3);
    int64_t offset = whence == SEEK_SET   ? target
                     : whence == SEEK_CUR ? target - here
                                          : target - 400000;
    ASSERT_EQ(bufio_reader_seek(&reader_, offset, whence), 0);
    ASSERT_EQ(bufio_reader_tell(&reader_), static_cast<uint64_t>(target));
    ASSERT_EQ(bufio_reader_getc(&reader_),
              static_cast<unsigned char>(text[static_cast<size_t>(target)]));
    EXPECT_SOUND(&reader_);
  }
}

TEST_F(ReaderTest, BadSeeksLeaveTheReaderWhereItWas) {
  Open("abc");
  EXPECT_EQ(bufio_reader_getc(&reader_), 'a');
  EXPECT_EQ(bufio_reader_seek(&reader_, -1, SEEK_SET), -EINVAL);
  EXPECT_EQ(bufio_reader_seek(&reader_, -2, SEEK_CUR), -EINVAL);
  EXPECT_EQ(bufio_reader_seek(&reader_, 0, 77), -EINVAL);
  EXPECT_EQ(bufio_reader_seek(&reader_, INT64_MAX, SEEK_CUR), -EINVAL);
  EXPECT_EQ(bufio_reader_seek(&reader_, -4, SEEK_END), -EINVAL);
  EXPECT_EQ(bufio_reader_getc(&reader_), 'b');
}

TEST_F(ReaderTest, SeekForgetsBytesThatUngetcChanged) {
  Open("abc");
  EXPECT_EQ(bufio_reader_getc(&reader_), 'a');
  EXPECT_TRUE(bufio_reader_ungetc(&reader_, 'z'));
  EXPECT_EQ(bufio_reader_seek(&reader_, 0, SEEK_SET), 0);
  EXPECT_EQ(bufio_reader_getc(&reader_), 'a');
}

TEST_F(ReaderTest, SeekBackInsideTheBufferFindsItsLinesAgain) {
  Open("one\ntwo\nthree\nfour\n");
  bufio_slice_t line;
  for (int i = 0; i < 3; i++) {
    ASSERT_EQ(bufio_reader_next_line(&reader_, &line), 1);
  }
  ASSERT_EQ(bufio_reader_seek(&reader_, 4, SEEK_SET), 0);
  EXPECT_EQ(Lines(), (std::vector<std::string>{"two", "three", "four"}));
}

TEST_F(ReaderTest, FilesOfMoreThanFourGigabytes) {
  // A hole takes no space.
  const uint64_t far = (uint64_t{5} << 30) + 12345;
  int descriptor = open(path_.c_str(), O_RDWR | O_CREAT, 0600);
  ASSERT_GE(descriptor, 0);
  ASSERT_EQ(pwrite(descriptor, "\nfar\nend\n", 9, static_cast<off_t>(far)), 9);
  ASSERT_EQ(bufio_reader_attach(&reader_, descriptor, nullptr), 0);
  ASSERT_EQ(
      bufio_reader_seek(&reader_, static_cast<int64_t>(far - 300000), SEEK_SET),
      0);
  bufio_slice_t line;
  ASSERT_EQ(bufio_reader_next_line(&reader_, &line), 1);
  EXPECT_EQ(line.len, 300000u);
  ASSERT_EQ(bufio_reader_next_line(&reader_, &line), 1);
  EXPECT_EQ(ToString(line), "far");
  EXPECT_EQ(bufio_reader_tell(&reader_), far + 5);
  close(descriptor);
}

TEST_F(ReaderTest, LineNumbersCountWhateverConsumes) {
  options_.count_lines = true;
  std::mt19937_64 random(Seed());
  std::string text = RandomText(&random, 600000);
  Open(text);
  for (int i = 0; i < 3000; i++) {
    bufio_slice_t slice = {};
    std::string scratch(200000, '\0');
    size_t count = 0;
    switch (random() % 7) {
      case 0:
        (void)bufio_reader_next_line(&reader_, &slice);
        break;
      case 1:
        bufio_reader_consume(&reader_, random() % 50);
        break;
      case 2:
        (void)bufio_reader_getc(&reader_);
        break;
      case 3:
        ASSERT_EQ(
            bufio_reader_read(&reader_, &scratch[0], random() % 30, &count), 0);
        break;
      case 4:
        if (random() % 500 == 0) {
          ASSERT_EQ(bufio_reader_read(&reader_, &scratch[0], 200000, &count),
                    0);
        }
        break;
      case 5:
        (void)!bufio_reader_next_until(&reader_, 'e', &slice);
        break;
      case 6: {
        uint64_t here = bufio_reader_tell(&reader_);
        if (here > 0) {
          (void)bufio_reader_ungetc(&reader_, text[here - 1]);
        }
        break;
      }
    }
    uint64_t here = bufio_reader_tell(&reader_);
    if (i % 10 == 0) {
      ASSERT_EQ(bufio_reader_line_number(&reader_),
                1 + static_cast<uint64_t>(std::count(
                        text.begin(),
                        text.begin() + static_cast<ptrdiff_t>(here), '\n')));
    }
    EXPECT_SOUND(&reader_);
  }
}

TEST_F(ReaderTest, LineNumberAfterUngetcOfWhatTheBufferForgot) {
  char memory[BUFIO_READER_MEMORY_MIN];
  options_.memory = memory;
  options_.memory_bytes = sizeof(memory);
  options_.count_lines = true;
  Open(std::string(500, '\n'));
  for (uint64_t i = 0; i < 300; i++) {
    ASSERT_EQ(bufio_reader_getc(&reader_), '\n');
  }
  uint64_t taken_back = 0;
  while (bufio_reader_ungetc(&reader_, '\n')) {
    taken_back++;
    ASSERT_EQ(bufio_reader_line_number(&reader_), 301 - taken_back);
  }
  EXPECT_GT(taken_back, 1u);
  while (bufio_reader_getc(&reader_) >= 0) {
  }
  EXPECT_EQ(bufio_reader_line_number(&reader_), 501u);
}

TEST_F(ReaderTest, LineNumberIsUnknownWithoutTheOptionAndAfterAFarSeek) {
  Open("a\nb\n");
  EXPECT_EQ(bufio_reader_line_number(&reader_), 0u);
  bufio_reader_close(&reader_);
  options_.count_lines = true;
  Open(std::string(1 << 20, '\n'));
  EXPECT_EQ(bufio_reader_line_number(&reader_), 1u);
  ASSERT_EQ(bufio_reader_seek(&reader_, 500000, SEEK_SET), 0);
  EXPECT_EQ(bufio_reader_line_number(&reader_), 0u);
  ASSERT_EQ(bufio_reader_seek(&reader_, 0, SEEK_SET), 0);
  EXPECT_EQ(bufio_reader_line_number(&reader_), 1u);
}

TEST_F(ReaderTest, CopyGivesTheWriterEverything) {
  std::string text = Pattern(0, 1 << 20);
  Open(text);
  std::string target = TempPath("copy");
  bufio_writer_t writer;
  ASSERT_EQ(bufio_writer_open(&writer, target.c_str(), nullptr), 0);
  {
    FaultyKernel kernel;
    EXPECT_EQ(bufio_reader_copy(&reader_, &writer), 0);
    EXPECT_EQ(bufio_writer_close(&writer), 0);
    // One for each 128 KiB, reads and writes together, and one finds the end.
    EXPECT_LE(kernel.count(Call::kRead) + kernel.count(Call::kWrite),
              text.size() / 131072 + 1);
  }
  EXPECT_EQ(bufio_testing::ReadFile(target), text);
  unlink(target.c_str());
}

}  // namespace
