// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Putting in place what a killed writer had accepted.
//
// The side file comes from outside: a dying process, another version, a hostile
// user. It is read, not mapped, so nobody can cut it under us; every number is
// compared with what was measured; and the plan below changes no byte that the
// file has, so even a side file that passes every check cannot destroy anything
// but the tail of a record that it announces.
//
//   end  = max(committed, written)
//   size = of the file
//
//   size < written            bytes that the kernel had are gone     -EPROTO
//   size in [written, end]    bytes up to size must equal the ring's (a pwrite
//                             that was cut short), else -EPROTO;
//                             append the ring's bytes [size, end)
//   size > end                cut to end, if the ring is empty and direct_end
//                             reaches that far; else somebody else has
//                             appended                                -EPROTO
//
// Killed anywhere in this, the next replay finds one of the same cases. The
// side file is removed last.
//
// There may be two side files, the one beside the name that is used and the one
// that the note on the file leads to. Both are locked, looked at and planned
// before anything is changed, so that -EPROTO leaves all as it was. Two that
// both want to change the file, or one that wants to cut it while the other
// counts, contradict each other: -EPROTO.

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "bufio/io_retry.h"
#include "bufio/io_system.h"
#include "bufio/journal_internal.h"

#define PIECE_BYTES ((size_t)65536)

// What the side file says, checked.
typedef struct replay_plan {
  uint64_t written;
  uint64_t committed;
  uint64_t direct_end;
  uint64_t ring_bytes;
} replay_plan_t;

// What a side file asks for.
typedef enum replay_change {
  CHANGE_NOTHING,
  CHANGE_APPEND,
  CHANGE_CUT,
} replay_change_t;

// A side file that was opened. `of_target` is false if nothing in it counts:
// its maker died before the magic, or had closed.
typedef struct side_state {
  bufio_side_t file;
  bool of_target;
  bool is_finished;  // Its maker had closed.
  bufio_journal_header_t header;
  uint64_t size_bytes;
  replay_plan_t plan;
  replay_change_t change;
} side_state_t;

// Beside the name that is used, and where the note leads to.
#define NUM_SIDES 2
#define OWN 0
#define NOTED 1

// The ring's bytes from a file offset on; `len` may cross its end.
static int read_ring(int journal, const replay_plan_t *plan,
                     unsigned char *bytes, size_t len, uint64_t offset) {
  uint64_t place = offset % plan->ring_bytes;
  size_t first =
      plan->ring_bytes - place < len ? (size_t)(plan->ring_bytes - place) : len;
  int status = bufio_io_read_at(journal, bytes, first,
                                BUFIO_JOURNAL_HEADER_BYTES + place);
  if (status < 0 || first == len) {
    return status;
  }
  return bufio_io_read_at(journal, bytes + first, len - first,
                          BUFIO_JOURNAL_HEADER_BYTES);
}

// A word of an offset and its check.
static int decode_word(const bufio_journal_header_t *header, uint64_t word,
                       uint64_t *out_offset) {
  uint64_t offset = word >> 16;
  if (word != bufio_journal_word(header, offset)) {
    return -EPROTO;
  }
  *out_offset = offset;
  return 0;
}

static int make_plan(const bufio_journal_header_t *header, uint64_t size_bytes,
                     replay_plan_t *out_plan) {
  if (header->ring_bytes == 0 ||
      header->ring_bytes > BUFIO_JOURNAL_RING_BYTES_MAX ||
      size_bytes != BUFIO_JOURNAL_HEADER_BYTES + header->ring_bytes) {
    return -EPROTO;
  }
  uint64_t written = 0;
  uint64_t direct_end = 0;
  if (decode_word(header, header->written, &written) < 0 ||
      (header->direct_end != 0 &&
       decode_word(header, header->direct_end, &direct_end) < 0)) {
    return -EPROTO;
  }
  uint64_t committed =
      header->committed < written ? written : header->committed;
  if (committed - written > header->ring_bytes ||
      committed > BUFIO_JOURNAL_OFFSET_MAX) {
    return -EPROTO;
  }
  out_plan->written = written;
  out_plan->committed = committed;
  out_plan->direct_end = direct_end;
  out_plan->ring_bytes = header->ring_bytes;
  return 0;
}

// The file's bytes [written, size) must be the ring's.
static int compare_overlap(int target, int journal, const replay_plan_t *plan,
                           uint64_t size, unsigned char *piece) {
  for (uint64_t offset = plan->written; offset < size;) {
    size_t len =
        size - offset < PIECE_BYTES ? (size_t)(size - offset) : PIECE_BYTES;
    int status = read_ring(journal, plan, piece, len, offset);
    if (status == 0) {
      status = bufio_io_read_at(target, piece + PIECE_BYTES, len, offset);
    }
    if (status < 0) {
      return status;
    }
    if (memcmp(piece, piece + PIECE_BYTES, len) != 0) {
      return -EPROTO;
    }
    offset += len;
  }
  return 0;
}

static int append_ring(int target, int journal, const replay_plan_t *plan,
                       uint64_t size, unsigned char *piece) {
  for (uint64_t offset = size; offset < plan->committed;) {
    uint64_t left = plan->committed - offset;
    size_t len = left < PIECE_BYTES ? (size_t)left : PIECE_BYTES;
    int status = read_ring(journal, plan, piece, len, offset);
    if (status == 0) {
      status = bufio_io_write_at(target, piece, len, offset);
    }
    if (status < 0) {
      return status;
    }
    offset += len;
  }
  return 0;
}

// What has to be done with a file of this size.
static int plan_change(int target, side_state_t *side, uint64_t size,
                       unsigned char *piece) {
  const replay_plan_t *plan = &side->plan;
  if (size < plan->written) {
    return -EPROTO;
  }
  if (size > plan->committed) {
    bool is_announced =
        plan->committed == plan->written && size <= plan->direct_end;
    side->change = CHANGE_CUT;
    return is_announced ? 0 : -EPROTO;
  }
  side->change = size < plan->committed ? CHANGE_APPEND : CHANGE_NOTHING;
  return compare_overlap(target, side->file.descriptor, plan, size, piece);
}

static int carry_out(int target, const side_state_t *side, uint64_t size,
                     unsigned char *piece, bufio_journal_result_t *result) {
  const replay_plan_t *plan = &side->plan;
  int status = 0;
  if (side->change == CHANGE_CUT) {
    status = bufio_io_truncate(target, plan->committed);
    result->removed_bytes = size - plan->committed;
  } else if (side->change == CHANGE_APPEND) {
    status = append_ring(target, side->file.descriptor, plan, size, piece);
    result->appended_bytes = plan->committed - size;
  }
  return status;
}

static int set_emptying(const side_state_t *side, uint64_t word) {
  return side->of_target
             ? bufio_io_write_at(side->file.descriptor, &word, sizeof(word),
                                 offsetof(bufio_journal_header_t, emptying))
             : 0;
}

// A truncation that fails must not cost the tail, so the side files are removed
// after it; dying in between must not leave a side file that speaks of bytes
// which are gone, so it says before that they are about to go.
static int truncate_for_good(int target, const side_state_t *sides) {
  int status = 0;
  for (int i = 0; i < NUM_SIDES && status == 0; i++) {
    status = set_emptying(&sides[i], bufio_journal_mark(&sides[i].header));
  }
  if (status == 0) {
    status = bufio_io_truncate(target, 0);
  }
  for (int i = 0; i < NUM_SIDES && status < 0; i++) {
    (void)set_emptying(&sides[i], 0);
  }
  return status;
}

static bool is_nothing(int status) {
  return status == -ENOENT || status == -ENAMETOOLONG;
}

static int look(int target, bufio_target_t *out_identity, side_state_t *side) {
  int status =
      bufio_side_look(target, side->file.descriptor, out_identity,
                      &side->of_target, &side->header, &side->size_bytes);
  side->is_finished =
      status == 0 && side->of_target &&
      side->header.finished == bufio_journal_mark(&side->header);
  return status;
}

// Opens, locks and looks at what there is, and changes nothing. `close_sides`
// is for the caller, whatever it returns.
static int open_sides(int target, const char *path, const char *journal_path,
                      side_state_t *sides, bufio_target_t *out_identity) {
  memset(sides, 0, NUM_SIDES * sizeof(*sides));
  for (int i = 0; i < NUM_SIDES; i++) {
    sides[i].file = (bufio_side_t)BUFIO_SIDE_NONE;
  }
  int status = bufio_side_open(journal_path, 0, &sides[OWN].file);
  if (status == 0) {
    status = look(target, out_identity, &sides[OWN]);
  } else if (is_nothing(status)) {
    status = 0;
  }
  if (status == 0) {
    status =
        bufio_note_open(target, path, &sides[OWN].file, &sides[NOTED].file);
  }
  return status > 0 ? look(target, out_identity, &sides[NOTED]) : status;
}

static void close_sides(side_state_t *sides) {
  for (int i = 0; i < NUM_SIDES; i++) {
    bufio_side_close(&sides[i].file);
  }
}

// The note goes last: as long as the side file is there that it leads to, so is
// the note. That it cannot be taken away does no harm: it leads to nothing. Nor
// does a side file that says itself that it does not count.
static int remove_sides(int target, const side_state_t *sides) {
  bool is_any = false;
  bool is_left = false;
  for (int i = 0; i < NUM_SIDES; i++) {
    if (sides[i].file.descriptor >= 0) {
      int status = bufio_side_remove(&sides[i].file);
      if (status < 0 && !sides[i].is_finished) {
        return status;
      }
      is_left = is_left || status < 0;
      is_any = true;
    }
  }
  if (is_any && !is_left) {
    (void)bufio_system->set_note(target, -1);
  }
  return 0;
}

static bool contradict(const side_state_t *sides) {
  const side_state_t *own = &sides[OWN];
  const side_state_t *noted = &sides[NOTED];
  if (!own->of_target || !noted->of_target) {
    return false;
  }
  return own->change == CHANGE_CUT || noted->change == CHANGE_CUT ||
         (own->change == CHANGE_APPEND && noted->change == CHANGE_APPEND);
}

static int plan_side(int target, const bufio_target_t *identity,
                     side_state_t *side, unsigned char *piece) {
  if (!side->of_target) {
    return 0;
  }
  const uint64_t mark = bufio_journal_mark(&side->header);
  if (side->is_finished ||
      (side->header.emptying == mark && identity->size_bytes == 0)) {
    side->of_target = false;  // Nothing in it counts any more.
    return 0;
  }
  int status = make_plan(&side->header, side->size_bytes, &side->plan);
  return status < 0 ? status
                    : plan_change(target, side, identity->size_bytes, piece);
}

// All is planned before anything is done.
static int replay_sides(int target, const bufio_target_t *identity,
                        side_state_t *sides, bufio_journal_result_t *result) {
  if (!sides[OWN].of_target && !sides[NOTED].of_target) {
    return 0;
  }
  unsigned char *piece = malloc(2 * PIECE_BYTES);
  if (piece == NULL) {
    return -ENOMEM;
  }
  int status = 0;
  for (int i = 0; i < NUM_SIDES && status == 0; i++) {
    status = plan_side(target, identity, &sides[i], piece);
  }
  if (status == 0 && contradict(sides)) {
    status = -EPROTO;
  }
  for (int i = 0; i < NUM_SIDES && status == 0; i++) {
    status = carry_out(target, &sides[i], identity->size_bytes, piece, result);
  }
  free(piece);
  return status;
}

int bufio_journal_replay_found(int target, const char *path,
                               const char *journal_path,
                               bufio_journal_result_t *out_result) {
  bufio_journal_result_t result = {0, 0};
  side_state_t sides[NUM_SIDES];
  bufio_target_t identity;
  int status = open_sides(target, path, journal_path, sides, &identity);
  if (status == 0) {
    status = replay_sides(target, &identity, sides, &result);
  }
  if (status == 0) {
    status = remove_sides(target, sides);
  }
  close_sides(sides);
  if (status == 0 && out_result != NULL) {
    *out_result = result;
  }
  return status;
}

int bufio_journal_empty(int target, const char *path,
                        const char *journal_path) {
  side_state_t sides[NUM_SIDES];
  bufio_target_t identity;
  int status = open_sides(target, path, journal_path, sides, &identity);
  if (status == 0) {
    status = truncate_for_good(target, sides);
  }
  if (status == 0) {
    status = remove_sides(target, sides);
  }
  close_sides(sides);
  return status;
}
