// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Fuzzes the reader. Input: 4 bytes of options, then 1 byte a call up to a NUL
// byte (or 200 of them), then the text of the file.
//
// Properties: every invariant after every call; what is delivered is the text,
// in order; the position is that of the text.

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#include "bufio/reader.h"
#include "bufio/scan.h"

namespace {

#define CHECK(condition) \
  do {                   \
    if (!(condition)) {  \
      abort();           \
    }                    \
  } while (0)

class Session {
 public:
  Session(const std::string &options, std::string text)
      : text_(std::move(text)), delimiter_(static_cast<char>(options[3])) {
    bufio_scan_use(static_cast<bufio_scan_level_t>(options[0] & 3));
    descriptor_ = memfd_create("fuzz", MFD_CLOEXEC);
    CHECK(descriptor_ >= 0);
    CHECK(write(descriptor_, text_.data(), text_.size()) ==
          static_cast<ssize_t>(text_.size()));
    CHECK(lseek(descriptor_, 0, SEEK_SET) == 0);
    bufio_reader_options_t how = {};
    if ((options[0] & 4) != 0) {
      how.memory = memory_;
      how.memory_bytes =
          BUFIO_READER_MEMORY_MIN + static_cast<unsigned char>(options[1]);
    } else {
      how.buffer_bytes = 1 + static_cast<unsigned char>(options[1]) * 8u;
      how.max_bytes = (options[0] & 8) != 0 ? 8192 : 0;
    }
    how.strip_cr = strip_cr_ = (options[0] & 16) != 0;
    how.count_lines = (options[0] & 32) != 0;
    how.use_delimiter = true;
    how.delimiter = static_cast<unsigned char>(delimiter_);
    CHECK(bufio_reader_attach(&reader_, descriptor_, &how) == 0);
    count_lines_ = how.count_lines;
  }

  ~Session() {
    bufio_reader_close(&reader_);
    close(descriptor_);
  }

  void Do(unsigned char call) {
    bufio_slice_t slice = {};
    size_t amount = call >> 3;
    switch (call & 7) {
      case 0:
        Line(bufio_reader_next_line(&reader_, &slice), slice, delimiter_,
             strip_cr_);
        break;
      case 1:
        Line(bufio_reader_next_until(&reader_, 'a', &slice), slice, 'a', false);
        break;
      case 2: {
        int byte = bufio_reader_getc(&reader_);
        CHECK(byte >= 0 ? byte == static_cast<unsigned char>(text_[at_])
                        : at_ == text_.size());
        at_ += byte >= 0;
        break;
      }
      case 3:
        if (bufio_reader_peek(&reader_, amount, &slice) > 0) {
          Expect(slice);
          bufio_reader_consume(&reader_, amount);
          at_ += amount;
        }
        break;
      case 4: {
        char piece[32 * 40];
        size_t len = 0;
        CHECK(bufio_reader_read(&reader_, piece, amount * 40, &len) == 0);
        CHECK(text_.compare(at_, len, piece, len) == 0);
        at_ += len;
        break;
      }
      case 5:
        if (bufio_reader_next_record(&reader_, amount, &slice) > 0) {
          Expect(slice);
          at_ += slice.len;
        }
        break;
      case 6:
        at_ = amount * text_.size() / 31;
        CHECK(bufio_reader_seek(&reader_, static_cast<int64_t>(at_),
                                SEEK_SET) == 0);
        break;
      default:
        if (at_ > 0 && bufio_reader_ungetc(&reader_, static_cast<unsigned char>(
                                                         text_[at_ - 1]))) {
          at_--;
        }
        break;
    }
    CHECK(bufio_reader_check(&reader_) == nullptr);
    CHECK(bufio_reader_tell(&reader_) == at_);
    uint64_t line = bufio_reader_line_number(&reader_);
    CHECK(line == 0 ||
          (count_lines_ &&
           line == 1 + static_cast<uint64_t>(std::count(
                           text_.begin(),
                           text_.begin() + static_cast<ptrdiff_t>(at_),
                           delimiter_))));
  }

 private:
  void Expect(bufio_slice_t slice) {
    CHECK(slice.len <= text_.size() - at_);
    CHECK(slice.len == 0 || memcmp(slice.data, &text_[at_], slice.len) == 0);
  }

  void Line(int status, bufio_slice_t slice, char delimiter, bool strip_cr) {
    if (status <= 0) {
      CHECK(status < 0 || at_ == text_.size());
      return;
    }
    Expect(slice);
    size_t end = text_.find(delimiter, at_);
    bool is_last = end == std::string::npos;
    CHECK(bufio_reader_is_unterminated(&reader_) == is_last);
    end = is_last ? text_.size() : end;
    size_t len = end - at_;
    if (strip_cr && !is_last && len > 0 && text_[end - 1] == '\r') {
      len--;
    }
    CHECK(slice.len == len);
    at_ = is_last ? end : end + 1;
  }

  std::string text_;
  char delimiter_;
  bool strip_cr_ = false;
  bool count_lines_ = false;
  size_t at_ = 0;
  int descriptor_ = -1;
  unsigned char memory_[BUFIO_READER_MEMORY_MIN + 256];
  bufio_reader_t reader_ = {};
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (size < 5) {
    return 0;
  }
  std::string input(reinterpret_cast<const char *>(data), size);
  std::string calls = input.substr(4, 200);
  calls = calls.substr(0, calls.find('\0'));
  size_t start = std::min(size, 4 + calls.size() + 1);
  Session session(input.substr(0, 4), input.substr(start));
  for (char call : calls) {
    session.Do(static_cast<unsigned char>(call));
  }
  return 0;
}
