// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A program that does one thing wrong, or its twin that does it right; started
// by malloc_misuse_test on each variant of this malloc.
//
//   malloc_misuse_client CASE bad|good
//
// Exit code 0: it came to its end. 9: it read what it should not see.

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// C23's, and C++'s sized forms.
extern void free_sized(void *ptr, size_t size) __attribute__((weak));
extern void delete_sized(void *ptr, size_t size) __asm__("_ZdlPvm")
    __attribute__((weak));
extern void delete_array_sized(void *ptr, size_t size) __asm__("_ZdaPvm")
    __attribute__((weak));

enum {
  SMALL = 100,
  MEDIUM = 100000,
  BIG = 40 << 20,
  MANY = 4000,
};

static bool is_bad;

// Hides a pointer from the compiler, which would warn.
static unsigned char *hide(void *ptr) {
  unsigned char *volatile hidden = ptr;
  return hidden;
}

static unsigned char *get(size_t size) {
  unsigned char *ptr = hide(malloc(size));
  if (ptr == NULL) {
    exit(2);
  }
  return ptr;
}

// Makes others come and go, so that what waits is reused.
static void churn(size_t size) {
  void *blocks[16];
  for (int i = 0; i < MANY; ++i) {
    for (size_t j = 0; j < 16; ++j) {
      blocks[j] = get(size);
    }
    for (size_t j = 0; j < 16; ++j) {
      free(blocks[j]);
    }
  }
}

static void double_free(void) {
  unsigned char *ptr = get(SMALL);
  free(ptr);
  free(is_bad ? hide(ptr) : NULL);
}

static void double_free_late(void) {
  unsigned char *ptr = get(SMALL);
  unsigned char *keep = get(SMALL);
  free(ptr);
  for (int i = 0; i < 20; ++i) {
    free(get(SMALL));
  }
  free(is_bad ? hide(ptr) : NULL);
  free(keep);
}

static void *free_in_thread(void *ptr) {
  free(ptr);
  return NULL;
}

static void double_free_by_thread(void) {
  pthread_t thread;
  unsigned char *ptr = get(SMALL);
  pthread_create(&thread, NULL, free_in_thread, ptr);
  pthread_join(thread, NULL);
  free(is_bad ? hide(ptr) : NULL);
}

static void double_free_medium(void) {
  unsigned char *ptr = get(MEDIUM);
  free(ptr);
  free(is_bad ? hide(ptr) : NULL);
}

static void double_free_big(void) {
  unsigned char *ptr = get(BIG);
  free(ptr);
  free(is_bad ? hide(ptr) : NULL);
}

static void double_free_empty(void) {
  unsigned char *ptr = hide(malloc(0));
  free(ptr);
  free(is_bad ? hide(ptr) : NULL);
}

static void free_of_stack(void) {
  long local[4];
  free(is_bad ? hide(local) : NULL);
}

static void free_of_interior(void) {
  unsigned char *ptr = get(SMALL);
  free(is_bad ? hide(ptr + 16) : ptr);
}

static void free_unaligned(void) {
  unsigned char *ptr = get(SMALL);
  free(is_bad ? hide(ptr + 1) : ptr);
}

// Writes the byte behind a block: that of a string that is one too long.
static void overflow_of(size_t size, unsigned char byte) {
  unsigned char *ptr = get(size);
  memset(ptr, 'x', size);
  ptr[is_bad ? size : size - 1] = byte;
  free(ptr);
}

static void overflow_zero(void) {
  overflow_of(SMALL, 0);
}

static void overflow_text(void) {
  overflow_of(SMALL, 'A');
}

static void overflow_full_class(void) {
  overflow_of(104, 0xff);
}

static void overflow_medium(void) {
  overflow_of(MEDIUM, 0);
}

static void overflow_big(void) {
  overflow_of(BIG - 16, 0);
}

static void overflow_aligned(void) {
  unsigned char *ptr = hide(aligned_alloc(1024, SMALL));
  memset(ptr, 'x', SMALL);
  ptr[is_bad ? SMALL : 0] = 0;
  free(ptr);
}

static void overflow_after_realloc(void) {
  unsigned char *ptr = hide(realloc(get(SMALL), SMALL - 7));
  ptr[is_bad ? SMALL - 7 : 0] = 0;
  free(ptr);
}

static void overflow_realloc(void) {
  unsigned char *ptr = get(SMALL);
  ptr[is_bad ? SMALL : 0] = 0;
  free(hide(realloc(ptr, 10 * SMALL)));
}

static void overflow_by_thread(void) {
  pthread_t thread;
  unsigned char *ptr = get(SMALL);
  ptr[is_bad ? SMALL : 0] = 0;
  pthread_create(&thread, NULL, free_in_thread, ptr);
  pthread_join(thread, NULL);
}

// Of two blocks of one span the higher one is not the first.
static void underflow(void) {
  unsigned char *a = get(SMALL);
  unsigned char *b = get(SMALL);
  unsigned char *high = a < b ? b : a;
  unsigned char *low = a < b ? a : b;
  free(low);
  high[is_bad ? -1 : 0] ^= 'x';
  free(high);
}

static void underflow_medium(void) {
  // Or nothing may be mapped before it.
  unsigned char *low = get(MEDIUM);
  unsigned char *ptr = get(MEDIUM);
  ptr[is_bad ? -1 : 0] = 'x';
  free(ptr);
  free(low);
}

static void write_after(size_t size, size_t offset) {
  unsigned char *ptr = get(size);
  if (is_bad) {
    free(ptr);
  }
  hide(ptr)[offset] = 1;
  if (!is_bad) {
    free(ptr);
  }
  churn(size);
}

static void write_after_free(void) {
  write_after(SMALL, 0);
}

static void write_after_free_at_end(void) {
  write_after(SMALL, SMALL - 1);
}

static void write_after_free_medium(void) {
  write_after(MEDIUM, MEDIUM / 2);
}

static void write_after_free_big(void) {
  unsigned char *ptr = get(BIG);
  if (is_bad) {
    free(ptr);
    hide(ptr)[BIG / 2] = 1;
  } else {
    hide(ptr)[BIG / 2] = 1;
    free(ptr);
  }
}

// Exits if the secret is there.
static void look_for_secret(const unsigned char *bytes, size_t size) {
  for (size_t i = 0; i < size; ++i) {
    if (bytes[i] == 0xa7) {
      exit(9);
    }
  }
}

static void stale_data_after_free(void) {
  unsigned char *ptr = get(SMALL);
  memset(ptr, 0xa7, SMALL);
  if (is_bad) {
    free(ptr);
    look_for_secret(hide(ptr), SMALL);
  } else {
    memset(ptr, 0, SMALL);
    look_for_secret(ptr, SMALL);
    free(ptr);
  }
}

static void stale_data_in_new_block(void) {
  static const size_t sizes[] = {SMALL, 5000, MEDIUM};
  for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); ++i) {
    for (int round = 0; round < 600; ++round) {
      unsigned char *ptr = get(sizes[i]);
      look_for_secret(ptr, sizes[i]);
      memset(ptr, is_bad ? 0xa7 : 0, sizes[i]);
      free(ptr);
    }
  }
}

static void stale_data_after_shrink(void) {
  unsigned char *ptr = get(MEDIUM);
  memset(ptr, is_bad ? 0xa7 : 0, MEDIUM);
  ptr = hide(realloc(ptr, MEDIUM / 2));
  memset(ptr, 0, MEDIUM / 2);
  ptr = hide(realloc(ptr, MEDIUM));
  look_for_secret(ptr, MEDIUM);
  free(ptr);
}

static void read_of_empty(void) {
  unsigned char *ptr = hide(malloc(is_bad ? 0 : 1));
  unsigned char *other = hide(malloc(0));
  if (ptr == other) {
    exit(3);
  }
  *(volatile unsigned char *)ptr;
  free(ptr);
  free(other);
}

static void write_to_empty(void) {
  unsigned char *ptr = hide(calloc(is_bad ? 0 : 1, 10));
  *(volatile unsigned char *)ptr = 1;
  free(ptr);
}

static void sized_delete(void) {
  delete_sized(get(SMALL), is_bad ? SMALL + 1 : SMALL);
}

static void sized_delete_of_array(void) {
  delete_array_sized(get(SMALL), is_bad ? SMALL - 1 : SMALL);
}

static void sized_free_after_realloc(void) {
  free_sized(realloc(get(SMALL), SMALL - 20), is_bad ? SMALL : SMALL - 20);
}

static void absurd_size(void) {
  void *ptr = malloc(is_bad ? (size_t)1 << 42 : SMALL);
  if ((ptr == NULL) != is_bad) {
    exit(4);
  }
  free(ptr);
}

#define CASE(name) \
  { #name, name }

static const struct {
  const char *name;
  void (*run)(void);
} cases[] = {
    CASE(double_free),
    CASE(double_free_late),
    CASE(double_free_by_thread),
    CASE(double_free_medium),
    CASE(double_free_big),
    CASE(double_free_empty),
    CASE(free_of_stack),
    CASE(free_of_interior),
    CASE(free_unaligned),
    CASE(overflow_zero),
    CASE(overflow_text),
    CASE(overflow_full_class),
    CASE(overflow_medium),
    CASE(overflow_big),
    CASE(overflow_aligned),
    CASE(overflow_after_realloc),
    CASE(overflow_realloc),
    CASE(overflow_by_thread),
    CASE(underflow),
    CASE(underflow_medium),
    CASE(write_after_free),
    CASE(write_after_free_at_end),
    CASE(write_after_free_medium),
    CASE(write_after_free_big),
    CASE(stale_data_after_free),
    CASE(stale_data_in_new_block),
    CASE(stale_data_after_shrink),
    CASE(read_of_empty),
    CASE(write_to_empty),
    CASE(sized_delete),
    CASE(sized_delete_of_array),
    CASE(sized_free_after_realloc),
    CASE(absurd_size),
};

int main(int argc, char **argv) {
  if (argc != 3 || free_sized == NULL || delete_sized == NULL ||
      delete_array_sized == NULL) {
    return 5;
  }
  is_bad = strcmp(argv[2], "bad") == 0;
  for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); ++i) {
    if (strcmp(argv[1], cases[i].name) == 0) {
      cases[i].run();
      return 0;
    }
  }
  return 6;
}
