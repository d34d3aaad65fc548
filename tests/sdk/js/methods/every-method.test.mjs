// All scenarios in one process, for one sandbox and one record; then whether a method has none.
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { sandbox, unseen, version } from './sdk.mjs'
import './commands.mjs'
import './pty.mjs'
import './files.mjs'
import './git.mjs'
import './sandbox.mjs'

test(`every public method of e2b ${version} was called`, () => assert.deepEqual(unseen(), []))

after(() => sandbox.kill())
