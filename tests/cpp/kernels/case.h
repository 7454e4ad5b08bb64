// One case: kernels launched on purpose, right ones or wrong ones, and what came of it as text.
//
// A line that a report must name ends in a comment: FAULT and the name of its case.
#pragma once

#include <sstream>
#include <string>
#include <vector>

struct Case {
  const char* name;
  std::string (*run)();
  const Case* next;
  static const Case*& first() {
    static const Case* head = nullptr;
    return head;
  }
  Case(const char* name, std::string (*run)()) : name(name), run(run), next(first()) {
    first() = this;
  }
};

#define CASE(name)                            \
  static std::string name();                  \
  static const Case name##_case(#name, name); \
  static std::string name()

template <class T>
std::string text(const T& value) {
  std::ostringstream out;
  out << value;
  return out.str();
}

// "exact", or the first element that is not as expected.
template <class T>
std::string compare(const std::vector<T>& got, const std::vector<T>& expected) {
  for (size_t i = 0; i < expected.size(); ++i) {
    if (!(got[i] == expected[i])) {
      return "[" + text(i) + "]: got " + text(got[i]) + ", expected " + text(expected[i]);
    }
  }
  return "exact";
}
