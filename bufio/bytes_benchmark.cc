// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What does a byte cost, and what is the least that it can cost?

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include <cstdint>
#include <string>

#include "bufio/bufio_benchmark.h"
#include "bufio/reader.h"
#include "bufio/writer.h"

namespace bufio_benchmark {
namespace {

// Loops in functions of their own, so that nothing but the bytes is in memory;
// unrolled, all of them, because the jump back takes as long as a byte.
void PutLoopStdio(FILE *file, size_t bytes) {
#pragma GCC unroll 8
  for (size_t i = 0; i < bytes; i++) {
    putc_unlocked(static_cast<unsigned char>(i), file);
  }
}

int PutLoopWriter(bufio_writer_t *writer, size_t bytes) {
  int status = 0;
#pragma GCC unroll 8
  for (size_t i = 0; i < bytes; i++) {
    status |= bufio_writer_putc(writer, static_cast<unsigned char>(i));
  }
  return status;
}

int PutLoopPutter(bufio_writer_t *writer, size_t bytes) {
  bufio_putter_t putter = bufio_putter_begin(writer);
#pragma GCC unroll 8
  for (size_t i = 0; i < bytes; i++) {
    bufio_putter_putc(&putter, static_cast<unsigned char>(i));
  }
  return bufio_putter_end(&putter);
}

// The same number of bytes handed over, but not put.
double PutNothing(const std::string &path, size_t bytes) {
  static char buffer[131072];
  return Timed([&] {
    int descriptor = OpenOver(path);
    for (size_t done = 0; done < bytes; done += sizeof(buffer)) {
      if (write(descriptor, buffer, sizeof(buffer)) < 0) {
        Die("write");
      }
    }
    close(descriptor);
  });
}

// What no function that looks at every byte can beat: each is stored, one by
// one, no limit is looked at, and write(2) takes 128 KiB at a time.
double PutBare(const std::string &path, size_t bytes) {
  static unsigned char buffer[131072];
  return Timed([&] {
    int descriptor = OpenOver(path);
    for (size_t done = 0; done < bytes; done += sizeof(buffer)) {
      unsigned char *cursor = buffer;
#pragma GCC unroll 8
      for (size_t i = 0; i < sizeof(buffer); i++) {
        *cursor++ = static_cast<unsigned char>(i);
        __asm__ volatile("" : : : "memory");  // Not several at once.
      }
      if (write(descriptor, buffer, sizeof(buffer)) < 0) {
        Die("write");
      }
    }
    close(descriptor);
  });
}

// Room is reserved for many bytes at a time, and nothing is checked in between.
int PutLoopReserve(bufio_writer_t *writer, size_t bytes) {
  constexpr size_t kPiece = 4096;
  int status = 0;
  for (size_t i = 0; i < bytes;) {
    size_t end = bytes - i < kPiece ? bytes : i + kPiece;
    unsigned char *room = bufio_writer_reserve(writer, kPiece);
    if (room == nullptr) {
      return -1;
    }
    unsigned char *cursor = room;
#pragma GCC unroll 8
    for (; i < end; i++) {
      *cursor++ = static_cast<unsigned char>(i);
    }
    status |= bufio_writer_commit(writer, static_cast<size_t>(cursor - room));
  }
  return status;
}

double PutStdio(const std::string &path, size_t bytes) {
  return Timed([&] {
    FILE *file = fdopen(OpenOver(path), "w");
    setvbuf(file, stdio_buffer, _IOFBF, kStdioBuffer);
    PutLoopStdio(file, bytes);
    fclose(file);
  });
}

double PutBufio(const std::string &path, size_t bytes,
                int (*loop)(bufio_writer_t *, size_t)) {
  return Timed([&] {
    int descriptor = OpenOver(path);
    bufio_writer_t writer;
    int status = bufio_writer_attach(&writer, descriptor, nullptr);
    status |= loop(&writer, bytes);
    if ((status | bufio_writer_close(&writer)) != 0) {
      Die("bufio_writer_putc");
    }
    close(descriptor);
  });
}

double GetStdio(const std::string &path) {
  return Timed([&] {
    FILE *file = fopen(path.c_str(), "r");
    setvbuf(file, stdio_buffer, _IOFBF, kStdioBuffer);
    int byte;
    uint64_t sum = 0;
    while ((byte = getc_unlocked(file)) != EOF) {
      sum += static_cast<uint64_t>(byte);
    }
    sink += sum;
    fclose(file);
  });
}

double GetBufio(const std::string &path, bool in_register) {
  return Timed([&] {
    bufio_reader_t reader;
    if (bufio_reader_open(&reader, path.c_str(), nullptr) != 0) {
      Die("bufio_reader_open");
    }
    int byte;
    uint64_t sum = 0;
    if (in_register) {
      bufio_getter_t getter = bufio_getter_begin(&reader);
      while ((byte = bufio_getter_getc(&getter)) >= 0) {
        sum += static_cast<uint64_t>(byte);
      }
      bufio_getter_end(&getter);
    } else {
      while ((byte = bufio_reader_getc(&reader)) >= 0) {
        sum += static_cast<uint64_t>(byte);
      }
    }
    sink += sum;
    bufio_reader_close(&reader);
  });
}

}  // namespace

void Bytes(const std::string &text, double text_bytes, const std::string &path,
           size_t bytes) {
  Compare("Bytes written", "GiB/s", static_cast<double>(bytes) / (1 << 30),
          {
              {"write(2) of 128 KiB, no bytes put",
               [&] {
                 return PutNothing(path, bytes);
               }},
              {"bytes stored without a check, and write(2)",
               [&] {
                 return PutBare(path, bytes);
               }},
              {"putc_unlocked, 64 KiB",
               [&] {
                 return PutStdio(path, bytes);
               }},
              {"bufio_writer_putc",
               [&] {
                 return PutBufio(path, bytes, PutLoopWriter);
               }},
              {"bufio_putter_putc",
               [&] {
                 return PutBufio(path, bytes, PutLoopPutter);
               }},
              {"a byte loop between reserve and commit, 4 KiB",
               [&] {
                 return PutBufio(path, bytes, PutLoopReserve);
               }},
          },
          {
              {"putter / putc_unlocked", 4, 2, 3.0},
              {"reserve / putc_unlocked", 5, 2, 3.0},
              {"the most there is: no check / putc_unlocked", 1, 2, 3.0},
          });
  Compare("Bytes read", "GiB/s", text_bytes / (1 << 30),
          {
              {"getc_unlocked, 64 KiB",
               [&] {
                 return GetStdio(text);
               }},
              {"bufio_reader_getc",
               [&] {
                 return GetBufio(text, false);
               }},
              {"bufio_getter_getc",
               [&] {
                 return GetBufio(text, true);
               }},
          },
          {{"getter / getc_unlocked", 2, 0, 1.4}});
}

}  // namespace bufio_benchmark
