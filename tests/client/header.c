// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The coldkv authors
//
// The public header alone, as C and (header.cpp) as C++, linked with the shared library only.
#include "client/coldkv.h"

int main(void) {
  struct coldkv_slots slots = {0};
  struct coldkv_status status = {0};
  coldkv_close(0);
  return coldkv_version()[0] == COLDKV_VERSION[0] && slots.k == 0 && status.tokens == 0 ? 0 : 1;
}
