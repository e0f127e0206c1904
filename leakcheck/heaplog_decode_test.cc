// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Records with the right checksum and the wrong content: each field out of its
// range, unknown ones, and definitions that contradict each other.

#include <errno.h>
#include <unistd.h>

#include <algorithm>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "leakcheck/heaplog_reader.h"
#include "leakcheck/heaplog_test_util.h"

namespace {

using heaplog_test::Bytes;
using heaplog_test::Log;
using heaplog_test::LogBuilder;
using heaplog_test::ReadBytes;
using heaplog_test::ReadOneChunk;
using heaplog_test::TempPath;
using heaplog_test::ToString;
using heaplog_test::WriteFile;

constexpr uint64_t kTop = ~uint64_t{0};
// Where the record after ReadOneChunk()'s THREAD lies.
uint64_t FirstRecord() {
  return HEAPLOG_HEADER_BYTES_MIN + sizeof(heaplog_chunk_header_t) +
         Bytes().Thread(0).str().size();
}

constexpr unsigned int Tag(unsigned int kind, unsigned int flags) {
  return HEAPLOG_COMPACT | kind << HEAPLOG_COMPACT_KIND_SHIFT | flags;
}

constexpr unsigned int kAlloc = HEAPLOG_COMPACT_ALLOC;
constexpr unsigned int kFree = HEAPLOG_COMPACT_FREE;
constexpr unsigned int kResize = HEAPLOG_COMPACT_RESIZE;
constexpr unsigned int kUnits = HEAPLOG_COMPACT_UNITS;
constexpr unsigned int kStack = HEAPLOG_COMPACT_STACK;
constexpr unsigned int kSize = HEAPLOG_COMPACT_SIZE;
constexpr unsigned int kSlack = HEAPLOG_COMPACT_SLACK;

// A good event, then `record`: the good one is delivered, then the error, whose
// place is the record's.
void ExpectMalformed(const std::string &name, const Bytes &record) {
  SCOPED_TRACE(name);
  Bytes good = Bytes().Free(5, 1);
  Log log =
      ReadOneChunk(Bytes().Append(good.str()).Append(record.str()).Free(1, 1));
  EXPECT_EQ(log.status, -EPROTO);
  EXPECT_EQ(log.error.code, HEAPLOG_ERROR_RECORD);
  EXPECT_EQ(log.error.byte_offset, FirstRecord() + good.str().size());
  EXPECT_EQ(log.events.size(), 1u);
}

TEST(HeaplogDecodeTest, OptionalFieldsDefaultToThePreviousOnes) {
  Log log =
      ReadOneChunk(Bytes()
                       // Nothing before: no size, no stack.
                       .Byte(Tag(kAlloc, 0))
                       .Varint(1)
                       .Signed(100)
                       .Byte(Tag(kAlloc, kStack | kSize | kSlack | kUnits))
                       .Varint(1)
                       .Signed(-2)
                       .Signed(9)
                       .Varint(40)
                       .Varint(8)
                       // Size, slack and stack as before.
                       .Byte(Tag(kAlloc, 0))
                       .Varint(0)
                       .Signed(0)
                       // A size without slack has none.
                       .Byte(Tag(kResize, kSize))
                       .Varint(1)
                       .Signed(0)
                       .Varint(10)
                       // A free has no stack unless it says so.
                       .Byte(Tag(kFree, 0))
                       .Varint(1)
                       .Signed(0)
                       .Byte(Tag(kFree, kStack))
                       .Varint(1)
                       .Signed(0)
                       .Signed(-4)
                       .Byte(Tag(kAlloc, 0))
                       .Varint(1)
                       .Signed(0));
  EXPECT_EQ(log.status, 0);
  const std::vector<heaplog_event_t> expected = {
      {1, 100, 0, 0, 0, 0, HEAPLOG_ALLOC, 0},
      {2, 68, 40, 48, 9, 0, HEAPLOG_ALLOC, 0},
      {2, 68, 40, 48, 9, 0, HEAPLOG_ALLOC, 0},
      {3, 68, 10, 10, 9, 0, HEAPLOG_RESIZE, 0},
      {4, 68, 0, 0, 0, 0, HEAPLOG_FREE, 0},
      {5, 68, 0, 0, 5, 0, HEAPLOG_FREE, 0},
      {6, 68, 10, 10, 5, 0, HEAPLOG_ALLOC, 0},
  };
  ASSERT_EQ(log.events.size(), expected.size());
  for (size_t i = 0; i < expected.size(); i++) {
    EXPECT_EQ(ToString(log.events[i]), ToString(expected[i]));
  }
}

TEST(HeaplogDecodeTest, UnknownRecordsAndUnknownFieldsAreSkipped) {
  Bytes payload;
  for (unsigned int type = 0x0c; type < 0x80; type++) {
    payload.Framed(type, Bytes().Append(std::string(type * 3, '\xff')));
    payload.Framed(type, Bytes());
  }
  // Known records with more fields than this version has.
  payload.Framed(HEAPLOG_RECORD_MAP,
                 Bytes().Varint(1).Varint(2).Varint(3).Append("more"));
  payload.Framed(HEAPLOG_RECORD_STACK,
                 Bytes().Signed(1).Varint(1).Signed(7).Append("\xff\xff"));
  payload.Framed(HEAPLOG_RECORD_PROCESS,
                 Bytes().String("exe").String("cmd").Append("\xff"));
  payload.Framed(HEAPLOG_RECORD_END, Bytes().Varint(1).Byte(0xff));
  Log log = ReadOneChunk(payload);
  EXPECT_EQ(log.status, 0);
  EXPECT_EQ(log.events.size(), 2u);
  EXPECT_EQ(log.stacks.size(), 1u);
  EXPECT_EQ(log.executable, "exe");
  EXPECT_TRUE(log.info.clean_end);
}

TEST(HeaplogDecodeTest, MalformedCompactEvents) {
  Bytes overlong;
  overlong.Append(std::string(10, '\xff'));
  for (unsigned int kind : {kAlloc, kFree, kResize}) {
    ExpectMalformed("reserved flag",
                    Bytes().Byte(Tag(kind, 0x10)).Varint(1).Signed(0));
    ExpectMalformed(
        "overlong time",
        Bytes().Byte(Tag(kind, 0)).Append(overlong.str()).Signed(0));
    ExpectMalformed(
        "overlong address",
        Bytes().Byte(Tag(kind, 0)).Varint(0).Append(overlong.str()));
    ExpectMalformed("time wraps",
                    Bytes().Byte(Tag(kind, 0)).Varint(kTop - 4).Signed(0));
    ExpectMalformed("overlong stack", Bytes()
                                          .Byte(Tag(kind, kStack))
                                          .Varint(0)
                                          .Signed(0)
                                          .Append(overlong.str()));
    ExpectMalformed("stack too great", Bytes()
                                           .Byte(Tag(kind, kStack))
                                           .Varint(0)
                                           .Signed(0)
                                           .Signed(HEAPLOG_STACK_ID_MAX + 1));
    ExpectMalformed(
        "stack negative",
        Bytes().Byte(Tag(kind, kStack)).Varint(0).Signed(0).Signed(-1));
    ExpectMalformed(
        "slack alone",
        Bytes().Byte(Tag(kind, kSlack)).Varint(0).Signed(0).Varint(8));
  }
  for (unsigned int kind : {kAlloc, kResize}) {
    ExpectMalformed("usable wraps", Bytes()
                                        .Byte(Tag(kind, kSize | kSlack))
                                        .Varint(0)
                                        .Signed(-1)
                                        .Varint(kTop)
                                        .Varint(1));
    ExpectMalformed(
        "block wraps",
        Bytes().Byte(Tag(kind, kSize)).Varint(0).Signed(-2).Varint(2));
    ExpectMalformed("overlong size", Bytes()
                                         .Byte(Tag(kind, kSize))
                                         .Varint(0)
                                         .Signed(0)
                                         .Append(overlong.str()));
  }
  ExpectMalformed(
      "free with a size",
      Bytes().Byte(Tag(kFree, kSize)).Varint(0).Signed(0).Varint(1));
  ExpectMalformed("kind 3", Bytes().Byte(Tag(3, 0)).Varint(0).Signed(0));
}

TEST(HeaplogDecodeTest, MalformedFrames) {
  ExpectMalformed("type 0", Bytes().Framed(0, Bytes()));
  ExpectMalformed("longer than the payload", Bytes().Byte(0x40).Varint(1000));
  ExpectMalformed("overlong length",
                  Bytes().Byte(0x40).Append(std::string(10, '\xff')));
  ExpectMalformed("huge length", Bytes().Byte(0x40).Varint(kTop));
}

TEST(HeaplogDecodeTest, MalformedFramedRecords) {
  using B = Bytes;
  const struct {
    const char *name;
    unsigned int type;
    Bytes body;
  } cases[] = {
      {"thread id too great", HEAPLOG_RECORD_THREAD,
       B().Varint(uint64_t{1} << 32).Varint(1).Varint(0).String("x")},
      {"thread name too long", HEAPLOG_RECORD_THREAD,
       B().Varint(1).Varint(1).Varint(0).String("0123456789abcdef")},
      {"thread name beyond the body", HEAPLOG_RECORD_THREAD,
       B().Varint(1).Varint(1).Varint(0).Varint(5).Append("abcd")},
      {"thread empty", HEAPLOG_RECORD_THREAD, B()},
      {"stack id 0", HEAPLOG_RECORD_STACK, B().Signed(0).Varint(0).Signed(0)},
      {"stack id too great", HEAPLOG_RECORD_STACK,
       B().Signed(HEAPLOG_STACK_ID_MAX + 1).Varint(1).Signed(0)},
      {"stack id negative", HEAPLOG_RECORD_STACK,
       B().Signed(-1).Varint(1).Signed(0)},
      {"stack its own parent", HEAPLOG_RECORD_STACK,
       B().Signed(5).Varint(0).Signed(0)},
      {"stack parent below 0", HEAPLOG_RECORD_STACK,
       B().Signed(5).Varint(6).Signed(0)},
      {"stack short", HEAPLOG_RECORD_STACK, B().Signed(5).Varint(1)},
      {"module id too great", HEAPLOG_RECORD_MODULE_LOAD,
       B().Varint(0)
           .Varint(kTop)
           .Varint(0)
           .Varint(0)
           .Varint(0)
           .String("")
           .String("")},
      {"module range wraps", HEAPLOG_RECORD_MODULE_LOAD,
       B().Varint(0)
           .Varint(1)
           .Varint(kTop)
           .Varint(1)
           .Varint(0)
           .String("")
           .String("")},
      {"module path with a NUL", HEAPLOG_RECORD_MODULE_LOAD,
       B().Varint(0)
           .Varint(1)
           .Varint(0)
           .Varint(1)
           .Varint(0)
           .String(std::string("a\0b", 3))
           .String("")},
      {"module path too long", HEAPLOG_RECORD_MODULE_LOAD,
       B().Varint(0)
           .Varint(1)
           .Varint(0)
           .Varint(1)
           .Varint(0)
           .String(std::string(HEAPLOG_PATH_BYTES_MAX + 1, 'x'))
           .String("")},
      {"module build id too long", HEAPLOG_RECORD_MODULE_LOAD,
       B().Varint(0).Varint(1).Varint(0).Varint(1).Varint(0).String("").String(
           std::string(HEAPLOG_BUILD_ID_BYTES_MAX + 1, 'x'))},
      {"module time wraps", HEAPLOG_RECORD_MODULE_LOAD,
       B().Varint(kTop - 4)
           .Varint(1)
           .Varint(0)
           .Varint(1)
           .Varint(0)
           .String("")
           .String("")},
      {"unload short", HEAPLOG_RECORD_MODULE_UNLOAD, B().Varint(0)},
      {"map wraps", HEAPLOG_RECORD_MAP, B().Varint(0).Varint(kTop).Varint(1)},
      {"map short", HEAPLOG_RECORD_MAP, B().Varint(0).Varint(1)},
      {"map time wraps", HEAPLOG_RECORD_MAP,
       B().Varint(kTop - 4).Varint(1).Varint(1)},
      {"unmap wraps", HEAPLOG_RECORD_UNMAP,
       B().Varint(0).Varint(1).Varint(kTop)},
      {"sample empty", HEAPLOG_RECORD_SAMPLE, B()},
      {"lost short", HEAPLOG_RECORD_LOST, B().Varint(0)},
      {"end empty", HEAPLOG_RECORD_END, B()},
      {"end overlong", HEAPLOG_RECORD_END, B().Append(std::string(10, '\xff'))},
      {"path too long", HEAPLOG_RECORD_PROCESS,
       B().String(std::string(HEAPLOG_PATH_BYTES_MAX + 1, 'x')).String("")},
      {"path with a NUL", HEAPLOG_RECORD_PROCESS,
       B().String(std::string(1, '\0')).String("")},
      {"command line too long", HEAPLOG_RECORD_PROCESS,
       B().String("").String(
           std::string(HEAPLOG_COMMAND_LINE_BYTES_MAX + 1, 'x'))},
      {"command line beyond the body", HEAPLOG_RECORD_PROCESS,
       B().String("").Varint(kTop)},
  };
  for (const auto &test : cases) {
    ExpectMalformed(test.name, Bytes().Framed(test.type, test.body));
  }
}

TEST(HeaplogDecodeTest, EventsBeforeAThreadAreMalformed) {
  for (const Bytes &record :
       {Bytes().Free(1, 1),
        Bytes().Framed(HEAPLOG_RECORD_SAMPLE, Bytes().Varint(1).Varint(1)),
        Bytes().Framed(HEAPLOG_RECORD_THREAD_END, Bytes().Varint(1))}) {
    LogBuilder builder;
    builder.Chunk(0, 0, 0, record);
    EXPECT_EQ(ReadBytes(builder.Build()).error.code, HEAPLOG_ERROR_RECORD);
  }
  // And after its end.
  Bytes end;
  end.Framed(HEAPLOG_RECORD_THREAD_END, Bytes().Varint(1));
  EXPECT_EQ(ReadOneChunk(end).status, 0);
  EXPECT_EQ(ReadOneChunk(end.Free(1, 1)).error.code, HEAPLOG_ERROR_RECORD);
}

// A payload with every record, cut at each byte: the last record is malformed
// unless the cut is between two.
TEST(HeaplogDecodeTest, PayloadCutAnywhereIsAPrefixOrMalformed) {
  const std::vector<Bytes> records = {
      Bytes()
          .Byte(Tag(kAlloc, kStack | kSize | kSlack | kUnits))
          .Varint(300)
          .Signed(0x123456)
          .Signed(3000)
          .Varint(4000)
          .Varint(96),
      Bytes().Free(1, 1),
      Bytes().Framed(HEAPLOG_RECORD_MAP,
                     Bytes().Varint(1).Varint(1 << 20).Varint(4096)),
      Bytes().Framed(HEAPLOG_RECORD_STACK,
                     Bytes().Signed(1).Varint(1).Signed(1 << 30)),
      Bytes().Framed(HEAPLOG_RECORD_MODULE_LOAD, Bytes()
                                                     .Varint(1)
                                                     .Varint(1)
                                                     .Varint(5)
                                                     .Varint(6)
                                                     .Varint(7)
                                                     .String("path")
                                                     .String("build")),
      Bytes().Framed(HEAPLOG_RECORD_MODULE_UNLOAD, Bytes().Varint(1).Varint(1)),
      Bytes().Framed(HEAPLOG_RECORD_PROCESS,
                     Bytes().String("exe").String("cmd")),
      Bytes().Framed(0x77, Bytes().Append("unknown")),
      Bytes().Framed(HEAPLOG_RECORD_LOST, Bytes().Varint(1).Varint(1)),
      Bytes().Framed(HEAPLOG_RECORD_END, Bytes().Varint(1)),
      Bytes().Framed(HEAPLOG_RECORD_THREAD_END, Bytes().Varint(1)),
  };
  std::string payload;
  std::vector<size_t> ends = {0};
  for (const Bytes &record : records) {
    payload += record.str();
    ends.push_back(payload.size());
  }
  size_t last_end = 0;
  for (size_t size = 0; size <= payload.size(); size++) {
    bool whole = std::count(ends.begin(), ends.end(), size) > 0;
    last_end = whole ? size : last_end;
    Log log = ReadOneChunk(Bytes().Append(payload.substr(0, size)));
    EXPECT_EQ(log.error.code, whole ? HEAPLOG_OK : HEAPLOG_ERROR_RECORD);
    if (!whole) {
      EXPECT_EQ(log.error.byte_offset, FirstRecord() + last_end);
    }
  }
}

TEST(HeaplogDecodeTest, FullPayloadIsRead) {
  Bytes payload;
  payload.Thread(0);
  uint64_t count = 0;
  while (payload.str().size() + 3 <= HEAPLOG_PAYLOAD_BYTES_MAX) {
    payload.Free(1, 1);
    count++;
  }
  LogBuilder builder;
  builder.Chunk(0, 0, 0, payload);
  Log log = ReadBytes(builder.Build());
  EXPECT_EQ(log.status, 0);
  EXPECT_EQ(log.events.size(), count);
}

TEST(HeaplogDecodeTest, PayloadIntoTheSpareBytesIsRefused) {
  Bytes payload;
  payload.Thread(0);
  payload.Append(std::string(
      HEAPLOG_PAYLOAD_BYTES_MAX + 1 - payload.str().size(), '\x40'));
  LogBuilder builder;
  builder.Chunk(0, 0, 0, payload);
  EXPECT_EQ(ReadBytes(builder.Build()).error.code, HEAPLOG_ERROR_CHECKSUM);
}

// Opens a log of one chunk, reads it to the end and lends it to a test.
class HeaplogStackTest : public ::testing::Test {
 protected:
  void Open(const std::vector<Bytes> &chunks) {
    LogBuilder builder;
    for (uint32_t i = 0; i < chunks.size(); i++) {
      builder.Chunk(0, i, i, Bytes().Thread(0).Append(chunks[i].str()));
    }
    WriteFile(path_, builder.Build());
    ASSERT_EQ(heaplog_reader_open(path_.c_str(), &reader_, nullptr), 0);
    heaplog_event_t event;
    EXPECT_FALSE(heaplog_reader_next(reader_, &event));
  }

  void TearDown() override {
    heaplog_reader_close(reader_);
    unlink(path_.c_str());
  }

  // A STACK record, counted from the one before.
  static Bytes Node(int64_t id_delta, uint64_t up, int64_t ip_delta) {
    return Bytes().Framed(HEAPLOG_RECORD_STACK,
                          Bytes().Signed(id_delta).Varint(up).Signed(ip_delta));
  }

  std::vector<uint64_t> Stack(uint32_t id, size_t capacity = 100) {
    std::vector<uint64_t> ips(capacity);
    ips.resize(heaplog_reader_stack(reader_, id, ips.data(), capacity));
    return ips;
  }

  std::string path_ = TempPath("stack.heaplog");
  heaplog_reader_t *reader_ = nullptr;
};

using U64s = std::vector<uint64_t>;

TEST_F(HeaplogStackTest, FramesComeInnermostFirst) {
  Open({Bytes()
            .Append(Node(1, 1, 100).str())
            .Append(Node(1, 1, 100).str())
            .Append(Node(1, 1, 100).str())
            .Append(Node(4, 6, 100).str())});
  EXPECT_EQ(Stack(3), (U64s{300, 200, 100}));
  EXPECT_EQ(Stack(7), (U64s{400, 100}));
  EXPECT_EQ(Stack(3, 2), (U64s{300, 200}));
  EXPECT_EQ(Stack(3, 0), U64s{});
  EXPECT_EQ(heaplog_reader_stack_id_end(reader_), 8u);
  uint64_t ip = 0;
  uint32_t parent = 0;
  EXPECT_TRUE(heaplog_reader_stack_node(reader_, 7, &ip, &parent));
  EXPECT_EQ(ip, 400u);
  EXPECT_EQ(parent, 1u);
  EXPECT_FALSE(heaplog_reader_stack_node(reader_, 6, &ip, &parent));
}

TEST_F(HeaplogStackTest, UnknownIdsHaveNoFrames) {
  Open({Node(5, 5, 1)});
  for (uint32_t id : {0u, 1u, 4u, 6u, 1024u, HEAPLOG_STACK_ID_MAX,
                      HEAPLOG_STACK_ID_MAX + 1, ~0u}) {
    EXPECT_EQ(Stack(id), U64s{}) << id;
  }
}

TEST_F(HeaplogStackTest, UnknownParentEndsTheStack) {
  Open({Node(5, 2, 1)});
  EXPECT_EQ(Stack(5), (U64s{1}));
}

TEST_F(HeaplogStackTest, ParentMayBeDefinedAfterItsChild) {
  Open({Bytes().Append(Node(5, 2, 1).str()).Append(Node(-2, 3, 1).str())});
  EXPECT_EQ(heaplog_reader_status(reader_, nullptr), 0);
  EXPECT_EQ(Stack(5), (U64s{1, 2}));
}

TEST_F(HeaplogStackTest, SameDefinitionTwiceIsFine) {
  Open({Bytes().Append(Node(5, 2, 1).str()).Append(Node(0, 2, 0).str())});
  EXPECT_EQ(heaplog_reader_status(reader_, nullptr), 0);
}

TEST_F(HeaplogStackTest, ContradictingDefinitionIsMalformed) {
  Open({Bytes().Append(Node(5, 2, 1).str()).Append(Node(0, 2, 1).str())});
  EXPECT_EQ(heaplog_reader_status(reader_, nullptr), -EPROTO);
}

TEST_F(HeaplogStackTest, ContradictingParentIsMalformed) {
  Open({Bytes().Append(Node(5, 2, 1).str()).Append(Node(0, 1, 0).str())});
  EXPECT_EQ(heaplog_reader_status(reader_, nullptr), -EPROTO);
}

TEST_F(HeaplogStackTest, DeepStackIsWalkedToItsRoot) {
  std::vector<Bytes> chunks;
  constexpr int kChunks = 20;
  constexpr int kPerChunk = 10000;
  for (int i = 0; i < kChunks; i++) {
    Bytes chunk;
    chunk.Append(Node(i * kPerChunk + 1, 1, i * kPerChunk + 1).str());
    for (int j = 1; j < kPerChunk; j++) {
      chunk.Append(Node(1, 1, 1).str());
    }
    chunks.push_back(chunk);
  }
  Open(chunks);
  constexpr size_t kDepth = kChunks * kPerChunk;
  std::vector<uint64_t> ips = Stack(kDepth, kDepth * 2);
  ASSERT_EQ(ips.size(), kDepth);
  for (size_t i = 0; i < kDepth; i++) {
    ASSERT_EQ(ips[i], kDepth - i);
  }
}

// Ids as far apart as they can be take bounded memory.
TEST_F(HeaplogStackTest, SparseIdsAreRead) {
  std::vector<Bytes> chunks;
  for (uint32_t first = 1; first < HEAPLOG_STACK_ID_MAX; first += 1024 * 1024) {
    Bytes chunk;
    chunk.Append(Node(first, 1, 1).str());
    for (int i = 1; i < 1024; i++) {
      chunk.Append(Node(1024, 1, 1).str());
    }
    chunks.push_back(chunk);
  }
  Open(chunks);
  EXPECT_EQ(heaplog_reader_status(reader_, nullptr), 0);
  EXPECT_EQ(heaplog_reader_stack_id_end(reader_), (1u << 24) - 1024 + 2);
}

TEST(HeaplogDefinitionTest, ThreadsGetIndicesInOrderOfAppearance) {
  LogBuilder builder;
  builder.Chunk(0, 0, 0, Bytes().Thread(7).Free(1, 1).Thread(0).Free(1, 1));
  builder.Chunk(0, 1, 5, Bytes().Thread(~0u).Free(1, 1).Thread(7).Free(1, 1));
  Log log = ReadBytes(builder.Build());
  EXPECT_EQ(log.status, 0);
  ASSERT_EQ(log.threads.size(), 3u);
  EXPECT_EQ(log.threads[0].tid, 107u);
  EXPECT_EQ(log.threads[1].tid, 100u);
  EXPECT_EQ(log.threads[2].tid, uint64_t{~0u} + 100);
  std::vector<uint32_t> indices;
  for (const heaplog_event_t &event : log.events) {
    indices.push_back(event.thread_index);
  }
  EXPECT_EQ(indices, (std::vector<uint32_t>{0, 1, 2, 0}));
}

TEST(HeaplogDefinitionTest, RepeatedThreadRecordRenames) {
  auto thread = [](const char *name) {
    return Bytes().Framed(HEAPLOG_RECORD_THREAD,
                          Bytes().Varint(3).Varint(9).Varint(2).String(name));
  };
  Log log = ReadOneChunk(
      Bytes().Append(thread("old").str()).Append(thread("new").str()));
  ASSERT_EQ(log.threads.size(), 2u);
  EXPECT_STREQ(log.threads[1].name, "new");
  EXPECT_EQ(log.threads[1].tid, 9u);
  EXPECT_EQ(log.threads[1].start_time_ns, 2u);
}

TEST(HeaplogDefinitionTest, ManyThreadsWithScatteredIds) {
  LogBuilder builder;
  for (uint32_t chunk = 0; chunk < 10; chunk++) {
    Bytes payload;
    for (uint32_t i = 0; i < 2000; i++) {
      payload.Thread((chunk * 2000 + i) * 214013u);
    }
    builder.Chunk(0, chunk, 0, payload);
  }
  Log log = ReadBytes(builder.Build());
  EXPECT_EQ(log.status, 0);
  EXPECT_EQ(log.threads.size(), 20000u);
}

TEST(HeaplogDefinitionTest, ModuleIdsAreUnique) {
  Bytes module;
  module.Framed(HEAPLOG_RECORD_MODULE_LOAD, Bytes()
                                                .Varint(0)
                                                .Varint(5)
                                                .Varint(0)
                                                .Varint(1)
                                                .Varint(0)
                                                .String("x")
                                                .String(""));
  EXPECT_EQ(ReadOneChunk(module).modules.size(), 1u);
  Log log = ReadOneChunk(Bytes(module).Append(module.str()));
  EXPECT_EQ(log.error.code, HEAPLOG_ERROR_RECORD);
  EXPECT_EQ(log.modules.size(), 1u);
}

TEST(HeaplogDefinitionTest, UnloadOfAnUnknownModuleIsIgnored) {
  Log log = ReadOneChunk(Bytes().Framed(HEAPLOG_RECORD_MODULE_UNLOAD,
                                        Bytes().Varint(1).Varint(77)));
  EXPECT_EQ(log.status, 0);
}

TEST(HeaplogDefinitionTest, ProcessIsTheFirstOne) {
  Log log = ReadOneChunk(
      Bytes()
          .Framed(HEAPLOG_RECORD_PROCESS, Bytes().String("a").String("b"))
          .Framed(HEAPLOG_RECORD_PROCESS, Bytes().String("c").String("d")));
  EXPECT_EQ(log.status, 0);
  EXPECT_EQ(log.executable, "a");
  EXPECT_EQ(log.command_line, "b");
}

}  // namespace
