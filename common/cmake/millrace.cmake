# One way to declare a library, a binary and a test.
include(GoogleTest)

add_library(millrace_compile_options INTERFACE)
target_compile_options(millrace_compile_options INTERFACE -Wall -Wextra)
if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  target_compile_options(millrace_compile_options INTERFACE -Wthread-safety)
endif()
if(MILLRACE_SANITIZE)
  target_compile_options(millrace_compile_options INTERFACE
    -fsanitize=${MILLRACE_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  target_link_options(millrace_compile_options INTERFACE -fsanitize=${MILLRACE_SANITIZE})
endif()

# gRPC's and LibTorch's headers take 10 s and 30 s a source; each set is compiled once here and reused by every target
# that names it.
function(_millrace_pch name dependency)
  file(CONFIGURE OUTPUT ${CMAKE_CURRENT_BINARY_DIR}/pch_${name}.cc CONTENT "")
  add_library(millrace_pch_${name} OBJECT ${CMAKE_CURRENT_BINARY_DIR}/pch_${name}.cc)
  target_link_libraries(millrace_pch_${name} PRIVATE ${dependency} millrace_compile_options)
  # As gRPC compiles its users, ours among them; a header compiled without it is not used.
  target_compile_options(millrace_pch_${name} PRIVATE -pthread)
  target_precompile_headers(millrace_pch_${name} PRIVATE ${ARGN})
endfunction()
_millrace_pch(torch millrace_torch <torch/torch.h> <torch/script.h>)
_millrace_pch(grpc gRPC::grpc++ <grpcpp/grpcpp.h> <grpcpp/generic/async_generic_service.h> <google/protobuf/message.h>
              <map> <string> <vector>)
if(MILLRACE_BUILD_TESTS)
  _millrace_pch(test "gRPC::grpc++;GTest::gmock;rapidcheck;rapidcheck_gtest" <grpcpp/grpcpp.h>
                <google/protobuf/message.h> <gmock/gmock.h> <gtest/gtest.h> <rapidcheck.h> <rapidcheck/gtest.h>
                <map> <string> <vector>)
endif()

# Every program under the thread sanitizer needs it; the source says why.
if(MILLRACE_SANITIZE STREQUAL "thread")
  add_library(millrace_tsan_hand_offs OBJECT ${PROJECT_SOURCE_DIR}/tests/testing/tsan_hand_offs.cc)
  target_link_libraries(millrace_tsan_hand_offs PRIVATE gRPC::grpc++ absl::synchronization millrace_compile_options)
endif()
function(millrace_executable name)
  add_executable(${name} ${ARGN})
  if(TARGET millrace_tsan_hand_offs)
    target_link_libraries(${name} PRIVATE $<TARGET_OBJECTS:millrace_tsan_hand_offs>)
  endif()
endfunction()

function(_millrace_target name)
  cmake_parse_arguments(ARG "" "PCH" "SOURCES;DEPS;LABELS" ${ARGN})
  target_include_directories(${name} PUBLIC ${PROJECT_SOURCE_DIR})
  target_link_libraries(${name} PUBLIC ${ARG_DEPS} PRIVATE millrace_compile_options)
  if(ARG_PCH)
    target_precompile_headers(${name} REUSE_FROM millrace_pch_${ARG_PCH})
  endif()
endfunction()

# millrace_library(name SOURCES ... DEPS ... [PCH torch|grpc])
function(millrace_library name)
  cmake_parse_arguments(ARG "" "PCH" "SOURCES;DEPS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  _millrace_target(${name} ${ARGN})
endfunction()

# millrace_binary(name SOURCES ... DEPS ...): installed, and left in <build>/bin
function(millrace_binary name)
  cmake_parse_arguments(ARG "" "PCH" "SOURCES;DEPS" ${ARGN})
  millrace_executable(${name} ${ARG_SOURCES})
  _millrace_target(${name} ${ARGN})
  install(TARGETS ${name} RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endfunction()

# millrace_test(name SOURCES ... DEPS ... [LABELS ...] [TIMEOUT seconds] [PROCESSORS n] [PCH torch] [EACH_CASE])
# The program is one ctest: to load LibTorch for every case takes longer than most cases. With EACH_CASE every case is a
# ctest of its own, with its own time limit; for cases that take seconds.
function(millrace_test name)
  cmake_parse_arguments(ARG "EACH_CASE" "PCH;TIMEOUT;PROCESSORS" "SOURCES;DEPS;LABELS" ${ARGN})
  if(NOT ARG_PCH)
    set(ARG_PCH test)
  endif()
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  if(NOT ARG_LABELS)
    set(ARG_LABELS unit)
  endif()
  if(NOT ARG_PROCESSORS)
    set(ARG_PROCESSORS 1)
  endif()
  millrace_executable(${name} ${ARG_SOURCES})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  _millrace_target(${name} SOURCES ${ARG_SOURCES} DEPS ${ARG_DEPS} PCH ${ARG_PCH})
  target_link_libraries(${name} PRIVATE GTest::gmock GTest::gtest_main rapidcheck rapidcheck_gtest)
  set(properties TIMEOUT ${ARG_TIMEOUT} PROCESSORS ${ARG_PROCESSORS} LABELS "${ARG_LABELS}")
  if(ARG_EACH_CASE)
    gtest_discover_tests(${name} DISCOVERY_MODE PRE_TEST DISCOVERY_TIMEOUT 60 PROPERTIES ${properties})
  else()
    add_test(NAME ${name} COMMAND ${name})
    set_tests_properties(${name} PROPERTIES ${properties})
  endif()
endfunction()
