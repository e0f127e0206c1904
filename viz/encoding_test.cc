// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// How figures and strings get into the page: JSON, columns, hashes.

#include <zlib.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "gtest/gtest.h"
#include "viz/column.h"
#include "viz/json.h"
#include "viz/sha256.h"

namespace viz {
namespace {

std::string Quoted(absl::string_view value) {
  return JsonWriter().String(value).text();
}

TEST(JsonTest, WritesNestedValues) {
  JsonWriter json;
  json.BeginObject();
  json.Key("a").BeginArray().Number(1).Bool(true).EndArray();
  json.Key("b").BeginObject().EndObject();
  json.Key("c").String("x");
  json.EndObject();
  EXPECT_EQ(json.text(), R"({"a":[1,true],"b":{},"c":"x"})");
}

TEST(JsonTest, EscapesWhatMeansSomethingInJsonAndHtml) {
  EXPECT_EQ(Quoted("</script>&'\"\\"),
            R"("\u003c/script\u003e\u0026\u0027\u0022\u005c")");
  EXPECT_EQ(Quoted(absl::string_view("\0\n\x7f", 3)),
            R"("\u0000\u000a\u007f")");
}

TEST(JsonTest, KeepsUtf8AndReplacesWhatIsNot) {
  EXPECT_EQ(Quoted("\u00e9\u20ac\U0001f600"), "\"\u00e9\u20ac\U0001f600\"");
  EXPECT_EQ(Quoted("a\xff"
                   "b"),
            R"("a\ufffdb")");
  EXPECT_EQ(Quoted("\xc3"), R"("\ufffd")");            // Cut.
  EXPECT_EQ(Quoted("\xc0\x80"), R"("\ufffd\ufffd")");  // Overlong.
  EXPECT_EQ(Quoted("\xed\xa0\x80"),                    // A surrogate.
            R"("\ufffd\ufffd\ufffd")");
  EXPECT_EQ(Quoted("\xf4\x90\x80\x80"),  // Above U+10FFFF.
            R"("\ufffd\ufffd\ufffd\ufffd")");
}

TEST(ColumnTest, NumbersTakeSevenBitsAByte) {
  Column column;
  column.Put(0);
  column.Put(127);
  column.Put(128);
  column.Put(300);
  EXPECT_EQ(column.bytes(), std::string("\x00\x7f\x80\x01\xac\x02", 6));
  EXPECT_EQ(column.count(), 4u);
}

TEST(ColumnTest, SignedNumbersAreZigzagged) {
  Column column;
  for (const int64_t value : {0, -1, 1, -2, 63, -64}) {
    column.PutSigned(value);
  }
  EXPECT_EQ(column.bytes(), std::string("\x00\x01\x02\x03\x7e\x7f", 6));
  Column extremes;
  extremes.PutSigned(INT64_MIN);
  EXPECT_EQ(extremes.bytes(), "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01");
}

TEST(ColumnTest, DeltasAreSigned) {
  Column column;
  column.PutDelta(5);
  column.PutDelta(3);
  EXPECT_EQ(column.bytes(), "\x0a\x03");
}

TEST(DeflateTest, InflatesToTheSame) {
  const std::string text(100000, 'x');
  const std::string deflated = Deflate(text);
  EXPECT_LT(deflated.size(), 1000u);
  std::string inflated(text.size(), '\0');
  uLongf size = inflated.size();
  ASSERT_EQ(uncompress(reinterpret_cast<Bytef *>(&inflated[0]), &size,
                       reinterpret_cast<const Bytef *>(deflated.data()),
                       deflated.size()),
            Z_OK);
  EXPECT_EQ(inflated, text);
  EXPECT_FALSE(Deflate("").empty());
}

// The examples of FIPS 180-4, and lengths around a block's end.
TEST(Sha256Test, KnownHashes) {
  const auto hex = [](absl::string_view message) {
    return absl::BytesToHexString(Sha256(message));
  };
  EXPECT_EQ(hex(""),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(hex("abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(hex(std::string(1000000, 'a')),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  EXPECT_EQ(hex(std::string(55, 'a')),
            "9f4390f8d30c2dd92ec9f095b65e2b9ae9b0a925a5258e241c9f1e910f734318");
  EXPECT_EQ(hex(std::string(64, 'a')),
            "ffe054fe7ae0cb6dc65c3af9b61d5209f439851db43d0ba5997337df154668eb");
}

}  // namespace
}  // namespace viz
