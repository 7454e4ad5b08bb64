// planted <case>: runs it. planted: lists them.
#include <cstdio>
#include <cstring>
#include <exception>

#include "case.h"

int main(int count, char** words) {
  for (const Case* one = Case::first(); one; one = one->next) {
    if (count < 2) {
      puts(one->name);
    } else if (!strcmp(words[1], one->name)) {
      try {
        puts(one->run().c_str());
      } catch (const std::exception& error) {
        printf("fault: %s\n", error.what());
        return 1;
      }
      return 0;
    }
  }
  return count < 2 ? 0 : 2;
}
