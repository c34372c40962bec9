// Philox4x32-10 against the known answers of its authors (Random123, kat_vectors).
#include "core/philox.h"

#include <gtest/gtest.h>

namespace lgreco {
namespace {

void expect_words(const Philox4& got, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  EXPECT_EQ(got.word[0], a);
  EXPECT_EQ(got.word[1], b);
  EXPECT_EQ(got.word[2], c);
  EXPECT_EQ(got.word[3], d);
}

TEST(Philox, KnownAnswers) {
  expect_words(philox4x32(0, 0, 0, 0, 0, 0), 0x6627E8D5U, 0xE169C58DU, 0xBC57AC4CU, 0x9B00DBD8U);
  const uint32_t ones = 0xFFFFFFFFU;
  expect_words(philox4x32(ones, ones, ones, ones, ones, ones), 0x408F276DU, 0x41C83B0EU, 0xA20BC7C6U,
               0x6D5451FDU);
  expect_words(philox4x32(0x243F6A88U, 0x85A308D3U, 0x13198A2EU, 0x03707344U, 0xA4093822U, 0x299F31D0U),
               0xD16CFE09U, 0x94FDCCEBU, 0x5001E420U, 0x24126EA1U);
}

}  // namespace
}  // namespace lgreco
