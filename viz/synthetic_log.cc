// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The program has four phases, as shares of its events: load (blocks only
// accumulate), work (blocks of all sizes come and go), a burst of temporary
// blocks with some that leak, and clean-up, after a sleep. Its addresses come
// from chunks of 64 KiB, one size class each, last freed first used; larger
// blocks have their own mappings.

#include "viz/synthetic_log.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <random>
#include <vector>

#include "leakcheck/heaplog_writer.h"

namespace viz {
namespace {

constexpr uint64_t kStartNs = 5000000000;
constexpr uint64_t kHeapStart = 0x555555800000;
constexpr uint64_t kLargeStart = 0x7f3a40000000;
constexpr uint64_t kChunkBytes = 64 << 10;
constexpr uint64_t kProgram = 0x555555554000;
constexpr uint64_t kLibrary = 0x7f3a90000000;

class Allocator {
 public:
  struct Result {
    uint64_t address;
    uint64_t usable_bytes;
    uint64_t mapped_bytes;  // From `mapped_address`; 0: nothing new.
    uint64_t mapped_address;
  };

  Result Allocate(uint64_t size_bytes) {
    if (size_bytes > kChunkBytes / 4) {
      const uint64_t usable = (size_bytes + 4095) / 4096 * 4096;
      const uint64_t address = next_large_;
      next_large_ += usable + 4096;
      return {address, usable, usable, address};
    }
    const uint64_t usable = std::max<uint64_t>(16, (size_bytes + 15) / 16 * 16);
    std::vector<uint64_t> &free = free_[usable];
    Result result = {0, usable, 0, 0};
    if (free.empty()) {
      result.mapped_address = next_chunk_;
      result.mapped_bytes = kChunkBytes;
      for (uint64_t i = kChunkBytes / usable; i-- > 0;) {
        free.push_back(next_chunk_ + i * usable);
      }
      next_chunk_ += kChunkBytes;
    }
    result.address = free.back();
    free.pop_back();
    return result;
  }

  // Returns how many bytes went back to the kernel.
  uint64_t Free(uint64_t address, uint64_t usable_bytes) {
    if (address >= kLargeStart) {
      return usable_bytes;
    }
    free_[usable_bytes].push_back(address);
    return 0;
  }

 private:
  uint64_t next_chunk_ = kHeapStart;
  uint64_t next_large_ = kLargeStart;
  std::map<uint64_t, std::vector<uint64_t>> free_;
};

struct LiveBlock {
  uint64_t address;
  uint64_t usable_bytes;
  uint32_t stack_id;
};

class Program {
 public:
  explicit Program(const SyntheticLogOptions &options)
      : options_(options), random_(options.seed) {
  }

  std::string Run(const std::string &path) {
    heaplog_writer_options_t options = {};
    options.path = path.c_str();
    options.start_monotonic_ns = kStartNs;
    options.start_unix_ns = 1700000000000000000;
    options.pid = 4242;
    options.page_bytes = 4096;
    const int status = heaplog_writer_open(&options, &writer_);
    if (status != 0) {
      return path + ": " + strerror(-status);
    }
    streams_.resize(std::min<uint32_t>(options_.threads, 64));
    for (uint32_t i = 0; i < streams_.size(); ++i) {
      const std::string name =
          options_.hostile_names ? "</script><b>" : "worker " + Number(i);
      if (heaplog_stream_open(writer_, now_, 4242 + i,
                              i == 0 ? "main" : name.c_str(),
                              &streams_[i]) != 0) {
        return path + ": cannot open a stream";
      }
    }
    Define();
    Load();
    Work();
    Burst();
    CleanUp();
    for (heaplog_stream_t *stream : streams_) {
      heaplog_stream_close(stream, now_);
    }
    const bool ok = heaplog_writer_error(writer_) == 0;
    heaplog_writer_close(writer_);
    return ok ? "" : path + ": writing failed";
  }

 private:
  static std::string Number(uint64_t number) {
    return std::to_string(number);
  }

  uint64_t Random(uint64_t end) {
    return random_() % end;
  }

  void Define() {
    const bool hostile = options_.hostile_names;
    const std::string program =
        hostile ? "/nowhere/<img src=x onerror=alert(1)>\"'&\n\xff\xfe/prog"
                : "/nowhere/bin/synthetic";
    std::string command = program;
    command += '\0';
    command += hostile ? "--x=</script><script>alert(2)</script>" : "--input";
    command += '\0';
    command += hostile ? "\u202e${7*7}" : "table.csv";
    command += '\0';
    heaplog_stream_t *stream = streams_[0];
    heaplog_append_process(stream, program.c_str(), command.data(),
                           command.size());
    DefineModule(1, kProgram, 0x100000, program);
    DefineModule(2, kLibrary, 0x200000,
                 hostile ? "/nowhere/</textarea><!-- libx.so"
                         : "/nowhere/lib/libtables.so.3");
    // A tree: each stack calls from an earlier one, mostly a recent one.
    for (uint32_t id = 1; id <= options_.stacks; ++id) {
      const uint32_t parent = id <= 3
                                  ? id - 1
                                  : static_cast<uint32_t>(std::max<uint64_t>(
                                        1, id - 1 - Random(id / 2 + 1)));
      const uint64_t module = Random(3) == 0 ? kLibrary : kProgram;
      heaplog_append_stack(stream, id, parent,
                           module + 0x1000 + Random(0xf0000));
    }
  }

  void DefineModule(uint32_t id, uint64_t start, uint64_t bytes,
                    const std::string &path) {
    heaplog_module_t module = {};
    module.id = id;
    module.start_address = start;
    module.end_address = start + bytes;
    module.load_bias = start;
    module.load_time_ns = now_;
    module.path = path.c_str();
    heaplog_append_module_load(streams_[0], &module);
  }

  heaplog_stream_t *AnyStream() {
    return streams_[Random(3) == 0 ? Random(streams_.size()) : 0];
  }

  uint64_t AnySize() {
    const uint64_t kind = Random(100);
    if (kind < 60) {
      return Random(128);
    }
    if (kind < 90) {
      return 128 + Random(1024);
    }
    return kind < 99 ? 1024 + Random(15000) : 20000 + Random(200000);
  }

  void Tick() {
    now_ += 100 + Random(2000);
    if (done_ % 1024 == 0) {
      heaplog_append_sample(streams_[0], now_,
                            mapped_bytes_ + (1 << 20) + Random(65536));
      ++done_;
    }
  }

  LiveBlock Allocate(heaplog_stream_t *stream, uint64_t size_bytes,
                     uint32_t stack_id) {
    Tick();
    const Allocator::Result result = allocator_.Allocate(size_bytes);
    if (result.mapped_bytes > 0) {
      heaplog_append_map(stream, now_, result.mapped_address,
                         result.mapped_bytes);
      mapped_bytes_ += result.mapped_bytes;
      ++done_;
    }
    heaplog_append_alloc(stream, now_, result.address, size_bytes,
                         result.usable_bytes, stack_id);
    ++done_;
    return {result.address, result.usable_bytes, stack_id};
  }

  void Free(heaplog_stream_t *stream, const LiveBlock &block) {
    Tick();
    heaplog_append_free(stream, now_, block.address, 0);
    ++done_;
    const uint64_t back = allocator_.Free(block.address, block.usable_bytes);
    if (back > 0) {
      heaplog_append_unmap(stream, now_, block.address, back);
      mapped_bytes_ -= back;
      ++done_;
    }
  }

  uint32_t AnyStack() {
    // A few stacks do most of the work.
    const uint64_t id = Random(options_.stacks) * Random(options_.stacks) /
                        std::max(options_.stacks, 1u);
    return static_cast<uint32_t>(id + 1);
  }

  void Load() {
    while (live_.size() < options_.live_blocks && done_ < options_.events / 4) {
      live_.push_back(Allocate(streams_[0], AnySize(), AnyStack()));
    }
  }

  void Work() {
    while (done_ < options_.events * 6 / 10) {
      heaplog_stream_t *stream = AnyStream();
      const size_t i = live_.empty() ? 0 : Random(live_.size());
      if (live_.empty() || Random(100) < 50) {
        live_.push_back(Allocate(stream, AnySize(), AnyStack()));
      } else if (Random(50) == 0) {
        Tick();
        const uint64_t size = Random(live_[i].usable_bytes + 1);
        heaplog_append_resize(stream, now_, live_[i].address, size,
                              live_[i].usable_bytes, AnyStack());
        ++done_;
      } else {
        Free(stream, live_[i]);
        live_[i] = live_.back();
        live_.pop_back();
      }
    }
  }

  void Burst() {
    while (done_ < options_.events * 8 / 10) {
      heaplog_stream_t *stream = AnyStream();
      const LiveBlock block = Allocate(stream, AnySize(), AnyStack());
      if (Random(20) == 0) {
        live_.push_back(block);
      } else {
        Free(stream, block);
      }
    }
  }

  void CleanUp() {
    now_ += (now_ - kStartNs) / 3;
    while (!live_.empty() && done_ < options_.events) {
      if (live_.back().stack_id % 7 != 0) {
        Free(AnyStream(), live_.back());
      }
      live_.pop_back();
    }
    if (options_.clean_end) {
      heaplog_append_end(streams_[0], now_);
    }
  }

  const SyntheticLogOptions options_;
  std::mt19937_64 random_;
  heaplog_writer_t *writer_ = nullptr;
  std::vector<heaplog_stream_t *> streams_;
  Allocator allocator_;
  std::vector<LiveBlock> live_;
  uint64_t now_ = kStartNs;
  uint64_t done_ = 0;
  uint64_t mapped_bytes_ = 0;
};

}  // namespace

std::string WriteSyntheticLog(const std::string &path,
                              const SyntheticLogOptions &options) {
  return Program(options).Run(path);
}

}  // namespace viz
