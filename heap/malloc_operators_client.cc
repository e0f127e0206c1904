// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A program with operators new and delete of its own, the plain forms only, as
// most such programs have: every other form must end in them. Their blocks have
// a header, so that no block of theirs is one of malloc. malloc_process_test
// runs it on the C library's malloc and on this one, linked and preloaded.

#include <cstdio>
#include <cstdlib>
#include <new>
#include <string>
#include <vector>

namespace {

constexpr size_t kHeaderBytes = 32;
// Volatile, as compilers assume that operators new and delete touch nothing
// that the program reads.
volatile int live;

struct alignas(128) Overaligned {
  char bytes[128];
};

struct Small {
  int members[5];
  ~Small() {
    members[0] = 0;
  }
};

}  // namespace

void *operator new(size_t size_bytes) {
  live = live + 1;
  char *bytes = static_cast<char *>(std::malloc(kHeaderBytes + size_bytes));
  if (bytes == nullptr) {
    throw std::bad_alloc();
  }
  return bytes + kHeaderBytes;
}

void operator delete(void *ptr) noexcept {
  if (ptr != nullptr) {
    live = live - 1;
    std::free(static_cast<char *>(ptr) - kHeaderBytes);
  }
}

// The compiler may not leave out what it does not see.
template <typename T>
T *Seen(T *ptr) {
  T *volatile seen = ptr;
  return seen;
}

int main() {
  delete Seen(new int(1));
  delete[] Seen(new int[10]);
  delete Seen(new Small());
  delete[] Seen(new Small[10]);
  ::operator delete(Seen(::operator new(100, std::nothrow)), std::nothrow);
  ::operator delete[](Seen(::operator new[](100, std::nothrow)), std::nothrow);
  ::operator delete (Seen(::operator new(100)), size_t{100});
  ::operator delete[](Seen(::operator new[](100)), size_t{100});
  if (live != 0) {
    std::fprintf(stderr, "%d deletes went elsewhere\n", live);
    return 1;
  }
  // The aligned forms, which it has not.
  delete Seen(new Overaligned);
  delete[] Seen(new Overaligned[3]);
  std::vector<std::string> strings(100, std::string(100, 'x'));
  return strings.size() == 100 ? 0 : 2;
}
