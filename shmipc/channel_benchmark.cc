// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What does a message cost from process to process, beside a bare cache line or
// futex, Boost.Interprocess's message_queue, and what the kernel offers?
//
// Round trips: a message there and one back. Throughput: one process sends, the
// other receives and adds up all words of each message, which is what a message
// is for; the time for each. Queues that do not take messages of a size are
// left out there.

#include <fcntl.h>
#include <mqueue.h>
#include <sched.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#if __has_include(<boost/interprocess/ipc/message_queue.hpp>)
#include <boost/interprocess/ipc/message_queue.hpp>
#define HAS_BOOST_QUEUE 1
#else
#define HAS_BOOST_QUEUE 0
#endif

#include "shmipc/block.h"
#include "shmipc/channel.h"
#include "shmipc/root.h"
#include "shmipc/shmipc_benchmarking.h"

namespace benchmarking {
namespace {

constexpr size_t kLargest = 65536;

volatile uint64_t sink;

void Consume(const void *data, size_t len) {
  const auto *words = static_cast<const uint64_t *>(data);
  uint64_t sum = 0;
  for (size_t i = 0; i < len / 8; i++) {
    sum += words[i];
  }
  sink = sum;
}

// A way to pass messages of one size, in both directions. `Send(who)` goes to
// the other one.
class Link {
 public:
  explicit Link(size_t size) : size_(size) {
  }
  virtual ~Link() = default;
  virtual bool IsPossible() {
    return true;
  }
  // In each process, before and after.
  virtual void Open(int) {
  }
  virtual void Close() {
  }
  virtual void Send(int who, const void *data) = 0;
  // Into `buffer`; returns where it is.
  virtual const void *Receive(int who, void *buffer) = 0;
  virtual void Done(int) {
  }

 protected:
  size_t size_;
};

enum class Copies {
  kBoth,
  kSender,
  kNone
};

class ChannelLink : public Link {
 public:
  ChannelLink(size_t size, shmipc_channel_kind_t kind, Copies copies,
              size_t capacity)
      : Link(size), copies_(copies) {
    shmipc_channel_options_t options = {};
    options.kind = kind;
    options.message_bytes = size;
    options.capacity_messages = capacity;
    for (int i = 0; i < 2; i++) {
      Check(shmipc_channel_create(region, Name(i).c_str(), &options,
                                  &channels_[i]));
    }
  }
  ~ChannelLink() override {
    for (int i = 0; i < 2; i++) {
      shmipc_ref_t ref;
      Check(shmipc_root_remove(region, Name(i).c_str(), &ref));
      Check(shmipc_block_free(region, shmipc_block_get(region, ref, 1)));
    }
  }
  void Open(int who) override {
    Check(shmipc_port_open(region, shmipc_ref_get(region, channels_[who], 1),
                           SHMIPC_SENDER, &sender_));
    Check(shmipc_port_open(region,
                           shmipc_ref_get(region, channels_[1 - who], 1),
                           SHMIPC_RECEIVER, &receiver_));
  }
  void Close() override {
    shmipc_port_close(sender_);
    shmipc_port_close(receiver_);
  }
  void Send(int, const void *data) override {
    if (copies_ != Copies::kNone) {
      Check(shmipc_port_send(sender_, data, size_, SHMIPC_FOREVER));
      return;
    }
    void *place;
    Check(shmipc_port_reserve(sender_, size_, &place, SHMIPC_FOREVER));
    // Made in place, not copied.
    memset(place, 1, size_);
    Check(shmipc_port_commit(sender_, size_));
  }
  const void *Receive(int, void *buffer) override {
    size_t len;
    if (copies_ == Copies::kBoth) {
      Check(
          shmipc_port_receive(receiver_, buffer, size_, &len, SHMIPC_FOREVER));
      return buffer;
    }
    const void *data;
    Check(shmipc_port_peek(receiver_, &data, &len, SHMIPC_FOREVER));
    return data;
  }
  void Done(int) override {
    if (copies_ != Copies::kBoth) {
      Check(shmipc_port_release(receiver_));
    }
  }

 private:
  std::string Name(int i) const {
    return "link" + std::to_string(reinterpret_cast<uintptr_t>(this)) +
           std::to_string(i);
  }

  Copies copies_;
  shmipc_ref_t channels_[2];
  shmipc_port_t *sender_ = nullptr;
  shmipc_port_t *receiver_ = nullptr;
};

// Pipes and sockets: read and write of whole messages.
class FdLink : public Link {
 public:
  FdLink(size_t size, int socket_type) : Link(size) {
    if (socket_type != 0) {
      int fds[2];
      if (socketpair(AF_UNIX, socket_type, 0, fds) != 0) {
        Die("socketpair");
      }
      for (int i = 0; i < 2; i++) {
        int bytes = 1 << 20;
        setsockopt(fds[i], SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
        write_[i] = fds[i];
        read_[i] = fds[i];
      }
      return;
    }
    for (int i = 0; i < 2; i++) {
      int fds[2];
      if (pipe(fds) != 0) {
        Die("pipe");
      }
      fcntl(fds[0], F_SETPIPE_SZ, 1 << 20);
      read_[1 - i] = fds[0];
      write_[i] = fds[1];
    }
  }
  ~FdLink() override {
    for (int i = 0; i < 2; i++) {
      close(read_[i]);
      if (write_[i] != read_[i]) {
        close(write_[i]);
      }
    }
  }
  void Send(int who, const void *data) override {
    const auto *bytes = static_cast<const char *>(data);
    for (size_t done = 0; done < size_;) {
      ssize_t written = write(write_[who], bytes + done, size_ - done);
      if (written <= 0) {
        Die("write");
      }
      done += static_cast<size_t>(written);
    }
  }
  const void *Receive(int who, void *buffer) override {
    auto *bytes = static_cast<char *>(buffer);
    for (size_t done = 0; done < size_;) {
      ssize_t got = read(read_[who], bytes + done, size_ - done);
      if (got <= 0) {
        Die("read");
      }
      done += static_cast<size_t>(got);
    }
    return buffer;
  }

 private:
  int read_[2];
  int write_[2];
};

class MqLink : public Link {
 public:
  explicit MqLink(size_t size) : Link(size) {
    struct mq_attr attributes = {};
    attributes.mq_maxmsg = 10;
    attributes.mq_msgsize = static_cast<long>(size);
    for (int i = 0; i < 2; i++) {
      std::string name = "/shmipc_benchmark." + std::to_string(getpid());
      queues_[i] =
          mq_open(name.c_str(), O_CREAT | O_EXCL | O_RDWR, 0600, &attributes);
      mq_unlink(name.c_str());
    }
  }
  ~MqLink() override {
    for (mqd_t queue : queues_) {
      if (queue != -1) {
        mq_close(queue);
      }
    }
  }
  bool IsPossible() override {
    return queues_[0] != -1 && queues_[1] != -1;
  }
  void Send(int who, const void *data) override {
    if (mq_send(queues_[who], static_cast<const char *>(data), size_, 0) != 0) {
      Die("mq_send");
    }
  }
  const void *Receive(int who, void *buffer) override {
    if (mq_receive(queues_[1 - who], static_cast<char *>(buffer), size_,
                   nullptr) < 0) {
      Die("mq_receive");
    }
    return buffer;
  }

 private:
  mqd_t queues_[2];
};

class SysvLink : public Link {
 public:
  explicit SysvLink(size_t size) : Link(size), message_(8 + size) {
    for (int &queue : queues_) {
      queue = msgget(IPC_PRIVATE, 0600);
    }
    message_[0] = 1;
    std::vector<char> probe(8 + size);
    probe[0] = 1;
    is_possible_ = msgsnd(queues_[0], probe.data(), size, IPC_NOWAIT) == 0 &&
                   msgrcv(queues_[0], probe.data(), size, 0, 0) >= 0;
  }
  ~SysvLink() override {
    for (int queue : queues_) {
      msgctl(queue, IPC_RMID, nullptr);
    }
  }
  bool IsPossible() override {
    return is_possible_;
  }
  void Send(int who, const void *data) override {
    long type = 1;
    memcpy(message_.data(), &type, sizeof(type));
    memcpy(message_.data() + 8, data, size_);
    if (msgsnd(queues_[who], message_.data(), size_, 0) != 0) {
      Die("msgsnd");
    }
  }
  const void *Receive(int who, void *) override {
    if (msgrcv(queues_[1 - who], message_.data(), size_, 0, 0) < 0) {
      Die("msgrcv");
    }
    return message_.data() + 8;
  }

 private:
  int queues_[2];
  std::vector<char> message_;
  bool is_possible_;
};

#if HAS_BOOST_QUEUE
class BoostLink : public Link {
 public:
  BoostLink(size_t size, size_t capacity) : Link(size) {
    for (int i = 0; i < 2; i++) {
      std::string name = "shmipc_benchmark." + std::to_string(getpid()) + "." +
                         std::to_string(i);
      boost::interprocess::message_queue::remove(name.c_str());
      queues_[i] = std::make_unique<boost::interprocess::message_queue>(
          boost::interprocess::create_only, name.c_str(), capacity, size);
      boost::interprocess::message_queue::remove(name.c_str());
    }
  }
  void Send(int who, const void *data) override {
    queues_[who]->send(data, size_, 0);
  }
  const void *Receive(int who, void *buffer) override {
    size_t len;
    unsigned int priority;
    queues_[1 - who]->receive(buffer, size_, len, priority);
    return buffer;
  }

 private:
  std::unique_ptr<boost::interprocess::message_queue> queues_[2];
};
#endif

struct Buffers {
  alignas(64) char out[kLargest];
  alignas(64) char in[kLargest];
};

Buffers *MakeBuffers() {
  auto *buffers = new Buffers;
  memset(buffers, 1, sizeof(*buffers));
  return buffers;
}

Buffers *buffers = MakeBuffers();

std::function<double()> RoundTrips(const std::shared_ptr<Link> &link,
                                   int64_t count) {
  return [link, count] {
    return TwoProcesses(count, [&](int who) {
      link->Open(who);
      for (int64_t i = 0; i < count; i++) {
        if (who == 0) {
          link->Send(who, buffers->out);
        }
        Consume(link->Receive(who, buffers->in), 8);
        link->Done(who);
        if (who == 1) {
          link->Send(who, buffers->out);
        }
      }
      link->Close();
    });
  };
}

std::function<double()> Throughput(const std::shared_ptr<Link> &link,
                                   size_t size, int64_t count) {
  return [link, size, count] {
    return TwoProcesses(count, [&](int who) {
      link->Open(who);
      for (int64_t i = 0; i < count; i++) {
        if (who == 0) {
          link->Send(who, buffers->out);
        } else {
          Consume(link->Receive(who, buffers->in), size);
          link->Done(who);
        }
      }
      link->Close();
    });
  };
}

struct Lines {
  alignas(128) std::atomic<uint32_t> turns[2][32];
};

// One cache line that goes to and fro, or one each way.
std::function<double()> RawLines(int64_t count, int num_lines) {
  static auto *lines =
      static_cast<Lines *>(mmap(nullptr, sizeof(Lines), PROT_READ | PROT_WRITE,
                                MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  return [count, num_lines] {
    lines->turns[0][0] = 0;
    lines->turns[1][0] = 0;
    return TwoProcesses(count, [&](int who) {
      auto *one = &lines->turns[0][0];
      for (uint32_t i = 0; num_lines == 1 && i < 2 * count; i += 2) {
        while (one->load(std::memory_order_acquire) !=
               i + static_cast<uint32_t>(who)) {
        }
        one->store(i + static_cast<uint32_t>(who) + 1,
                   std::memory_order_release);
      }
      for (uint32_t i = 1; num_lines == 2 && i <= count; i++) {
        if (who == 0) {
          lines->turns[0][0].store(i, std::memory_order_release);
        }
        while (lines->turns[1 - who][0].load(std::memory_order_acquire) != i) {
        }
        if (who == 1) {
          lines->turns[1][0].store(i, std::memory_order_release);
        }
      }
    });
  };
}

std::function<double()> BareFutex(int64_t count) {
  static auto *lines =
      static_cast<Lines *>(mmap(nullptr, sizeof(Lines), PROT_READ | PROT_WRITE,
                                MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  return [count] {
    lines->turns[0][0] = 0;
    lines->turns[1][0] = 0;
    return TwoProcesses(count, [&](int who) {
      auto *theirs = &lines->turns[who][0];
      auto *mine = &lines->turns[1 - who][0];
      for (uint32_t i = 1; i <= count; i++) {
        if (who == 0) {
          *theirs = i;
          FutexWake(theirs);
        }
        while (*mine != i) {
          FutexWait(mine, i - 1);
        }
        if (who == 1) {
          *theirs = i;
          FutexWake(theirs);
        }
      }
    });
  };
}

// Both processes on one CPU: nobody can find anything by spinning.
std::function<double()> OnOneCpu(const std::function<double()> &run) {
  return [run] {
    cpu_set_t before;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(0, &one);
    sched_getaffinity(0, sizeof(before), &before);
    sched_setaffinity(0, sizeof(one), &one);
    double result = run();
    sched_setaffinity(0, sizeof(before), &before);
    return result;
  };
}

std::shared_ptr<Link> Ours(size_t size, shmipc_channel_kind_t kind,
                           Copies copies, size_t capacity) {
  return std::make_shared<ChannelLink>(size, kind, copies, capacity);
}

struct Peer {
  const char *name;
  std::shared_ptr<Link> link;
};

std::vector<Peer> Peers(size_t size, size_t capacity) {
  (void)capacity;
  std::vector<Peer> all = {
#if HAS_BOOST_QUEUE
    {"Boost message_queue", std::make_shared<BoostLink>(size, capacity)},
#endif
    {"pipe", std::make_shared<FdLink>(size, 0)},
    {"socketpair, stream", std::make_shared<FdLink>(size, SOCK_STREAM)},
    {"socketpair, datagram", std::make_shared<FdLink>(size, SOCK_DGRAM)},
    {"socketpair, seqpacket", std::make_shared<FdLink>(size, SOCK_SEQPACKET)},
    {"POSIX queue", std::make_shared<MqLink>(size)},
    {"System V queue", std::make_shared<SysvLink>(size)},
  };
  std::vector<Peer> possible;
  for (const Peer &peer : all) {
    if (peer.link->IsPossible()) {
      possible.push_back(peer);
    } else {
      printf("  (%s does not take messages of %zu bytes here)\n", peer.name,
             size);
    }
  }
  return possible;
}

void AllRoundTrips() {
  int64_t fast = flags.messages;
  int64_t slow = std::max<int64_t>(1, flags.messages / 20);
  int64_t sleeping = std::max<int64_t>(1, flags.messages / 5);
  std::vector<Contender> contenders = {
      {"shmipc SPSC, spinning",
       RoundTrips(Ours(64, SHMIPC_SPSC, Copies::kBoth, 64), fast)},
      {"raw cache line, one each way", RawLines(fast, 2)},
      {"raw cache line, the same both ways", RawLines(fast, 1)},
      {"shmipc SPSC, in place",
       RoundTrips(Ours(64, SHMIPC_SPSC, Copies::kNone, 64), fast)},
      {"shmipc MPMC, spinning",
       RoundTrips(Ours(64, SHMIPC_MPMC, Copies::kBoth, 64), fast)},
  };
  for (const Peer &peer : Peers(64, 64)) {
    contenders.push_back({peer.name, RoundTrips(peer.link, slow)});
  }
  Compare("Round trip of 64 bytes, two CPUs", contenders,
          {{0, 1, 2.0}, {0, 2, 2.0}});
  Compare("Round trip of 64 bytes, both on one CPU: all sleep",
          {{"shmipc SPSC, sleeping",
            OnOneCpu(RoundTrips(Ours(64, SHMIPC_SPSC, Copies::kBoth, 64),
                                sleeping))},
           {"bare futex", OnOneCpu(BareFutex(sleeping))},
           {"shmipc MPMC, sleeping",
            OnOneCpu(RoundTrips(Ours(64, SHMIPC_MPMC, Copies::kBoth, 64),
                                sleeping))},
           {"pipe",
            OnOneCpu(RoundTrips(std::make_shared<FdLink>(64, 0), sleeping))}},
          {{0, 1, 1.1}, {2, 1, 1.1}});
}

// Of ours against the best, in time: 1 / how many times faster.
void AllThroughput(size_t size, size_t capacity, int64_t ours, int64_t slow) {
  std::vector<Contender> contenders = {
      {"shmipc SPSC, copied",
       Throughput(Ours(size, SHMIPC_SPSC, Copies::kBoth, capacity), size,
                  ours)},
      {"shmipc SPSC, received in place",
       Throughput(Ours(size, SHMIPC_SPSC, Copies::kSender, capacity), size,
                  ours)},
      {"shmipc SPSC, in place at both ends",
       Throughput(Ours(size, SHMIPC_SPSC, Copies::kNone, capacity), size,
                  ours)},
      {"shmipc MPMC, copied",
       Throughput(Ours(size, SHMIPC_MPMC, Copies::kBoth, capacity), size,
                  ours)},
      {"shmipc MPMC, received in place",
       Throughput(Ours(size, SHMIPC_MPMC, Copies::kSender, capacity), size,
                  ours)},
  };
  std::vector<Bar> bars = {{1, 0, 1 / 1.4}};
  for (const Peer &peer : Peers(size, capacity)) {
    size_t index = contenders.size();
    contenders.push_back({peer.name, Throughput(peer.link, size, slow)});
    bool is_boost = strncmp(peer.name, "Boost", 5) == 0;
    bool is_socket = strncmp(peer.name, "socket", 6) == 0;
    if (is_boost && size <= 1024) {
      bars.push_back({0, index, size == 64 ? 1.0 / 8 : 1.0 / 6});
    } else if (strcmp(peer.name, "pipe") == 0 && size == 64) {
      bars.push_back({0, index, 1.0 / 10});
    } else if (is_socket && size == kLargest) {
      bars.push_back({0, index, 1.0 / 3});
    }
  }
  Compare(("Messages of " + std::to_string(size) + " bytes one way").c_str(),
          contenders, bars);
}

}  // namespace

void Channels() {
  AllRoundTrips();
  int64_t count = flags.messages;
  AllThroughput(64, 1024, 10 * count, count);
  AllThroughput(1024, 256, 2 * count, count);
  AllThroughput(kLargest, 16, std::max<int64_t>(1, count / 10),
                std::max<int64_t>(1, count / 20));
}

}  // namespace benchmarking
